"""Several adapters in one batch, and a name that changes hands while requests run: each result says what made it."""

from __future__ import annotations

import asyncio

import pytest
from backend_kit import facts_of, serve, tiny_engine, until

from lad_engine import Engine
from lad_engine.adapters.reader import read_adapter
from lad_engine.adapters.single_file import save_single_file
from lad_engine.backend import Started
from lad_engine.errors import AdapterError, ConfigError
from tiny_adapter import write_adapter
from tiny_checkpoint import make_tiny


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp("base"), tie=True)


@pytest.fixture(scope="module")
def files(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    files = {
        name: write_adapter(base, folder / f"{name}.safetensors", seed, name=name) for name, seed in (("one", 1), ("two", 2), ("new", 3))
    }
    # The same weights with another prompt format: a waiting request must be laid out again for it.
    read = read_adapter(files["new"]).with_facts(prompt_format="raw")
    return {**files, "raw": save_single_file(folder / "raw.safetensors", read, dtype="float32")}


def load(base, files, **settings):
    return Engine.load(base, adapters={name: files[name] for name in ("one", "two")}, dtype="float32", **settings)


@pytest.fixture
def engine(base, files):
    return load(base, files)


@pytest.mark.parametrize("driver", ["eager", "replay"])
def test_requests_of_one_batch_name_their_own_adapters(base, files, driver):
    names = ["one", None, "two", "one", "two", None]
    alone = load(base, files, driver=driver)
    params = [alone.sampling("paper", max_new_tokens=8, steps=6, early_stop=False, seed=n) for n in range(len(names))]

    async def scenario(backend):
        async def ask(n):
            await asyncio.sleep(0.01 * n)
            return await backend.generate("the user", params[n], adapter=names[n])

        return await asyncio.gather(*map(ask, range(len(names))))

    for n, done in enumerate(serve(load(base, files, driver=driver), scenario)):
        assert done.result.adapter == names[n] and done.adapter_version == (1 if names[n] else None)
        assert done.result.token_ids == alone.generate("the user", params[n], adapters=names[n])[0].token_ids


def test_a_request_finishes_on_the_version_it_started_with(base, files, engine):
    alone = load(base, files)
    long = engine.sampling("paper", max_new_tokens=8, steps=120, early_stop=False, seed=5)
    old = facts_of(alone.generate("hello", long, adapters="one")[0])
    base_answer = facts_of(alone.generate("hello", long)[0])
    alone.load_adapter("one", files["new"])
    new = facts_of(alone.generate("hello", long, adapters="one")[0])
    assert old != new

    async def scenario(backend):
        running = backend.submit("hello", long, adapter="one")
        plain = backend.submit("hello", long)
        await until(lambda: backend.stats().adapters == {"one@1": 1})
        status = await backend.load_adapter("one", files["new"])
        assert status.version == 2 and status.running == {1: 1} and status.path == str(files["new"])
        later = backend.submit("hello", long, adapter="one")
        await until(lambda: backend.stats().adapters == {"one@1": 1, "one@2": 1})
        with pytest.raises(AdapterError, match="slots are taken"):
            await backend.load_adapter("one", files["new"])
        assert [status.name for status in backend.list_adapters()] == ["one", "two"]
        return await asyncio.gather(running.result(), later.result(), plain.result())

    first, second, plain = serve(engine, scenario)
    assert (first.adapter_version, second.adapter_version, plain.adapter_version) == (1, 2, None)
    assert (facts_of(first.result), facts_of(second.result), facts_of(plain.result)) == (old, new, base_answer)


def test_the_last_adapter_leaves_when_its_requests_have_ended(base, tmp_path):
    file = write_adapter(base, tmp_path / "shifted.safetensors", 1, predicts_next_token=True)
    alone = Engine.load(base, adapters={"shifted": file}, dtype="float32")
    long = alone.sampling("paper", max_new_tokens=8, steps=60, early_stop=False, seed=5)
    wanted = facts_of(alone.generate("hello", long, adapters="shifted")[0])
    engine = Engine.load(base, adapters={"shifted": file}, dtype="float32")

    async def scenario(backend):
        handle = backend.submit("hello", long, adapter="shifted")
        await until(lambda: backend.stats().running == 1)
        await backend.unload_adapter("shifted")
        done = await handle.result()
        assert backend.list_adapters() == () and not engine.model.head.predicts_next_token
        return done

    assert facts_of(serve(engine, scenario).result) == wanted


def test_a_waiting_request_is_laid_out_for_the_version_it_starts_with(base, files, engine):
    alone = load(base, files)
    alone.load_adapter("two", files["raw"])
    short = engine.sampling("paper", max_new_tokens=8, steps=4)

    async def scenario(backend):
        busy = backend.submit("hello", engine.sampling("paper", steps=5000, early_stop=False), adapter="one")
        await until(lambda: backend.stats().running == 1)
        waiting = backend.submit("hello", short, adapter="two")
        lost = backend.submit("hello", short, adapter="one")
        await backend.load_adapter("two", files["raw"])
        await backend.unload_adapter("one")
        busy.cancel()
        events = [event async for event in waiting]
        assert isinstance(events[0], Started) and (events[0].adapter, events[0].adapter_version) == ("two", 2)
        with pytest.raises(AdapterError, match="is not loaded"):
            await lost.result()
        with pytest.raises(AdapterError, match="is not loaded"):
            backend.submit("hello", short, adapter="one")
        return events[-1]

    done = serve(engine, scenario, max_running=1)
    assert facts_of(done.result) == facts_of(alone.generate("hello", short, adapters="two")[0])


def test_an_adapter_that_does_not_fit_changes_nothing(base, files, engine, tmp_path):
    wider = make_tiny(tmp_path / "wider", tie=True, hidden_size=32)
    wrong = write_adapter(wider, tmp_path / "wrong.safetensors")

    async def scenario(backend):
        with pytest.raises(AdapterError):
            await backend.load_adapter("one", wrong)
        with pytest.raises(AdapterError):
            await backend.load_adapter("three", tmp_path / "missing.safetensors")
        assert [(one.name, one.version) for one in backend.list_adapters()] == [("one", 1), ("two", 1)]
        return (await backend.generate("hello", adapter="one")).adapter_version

    assert serve(engine, scenario) == 1


def test_an_engine_without_named_adapters_says_so(base, files):
    async def scenario(backend):
        with pytest.raises(ConfigError, match="without any by name"):
            await backend.load_adapter("one", files["one"])
        with pytest.raises(AdapterError, match="none by name"):
            backend.submit("hello", adapter="one")
        assert backend.list_adapters() == ()
        done = await backend.generate("hello")
        assert done.result.adapter == "one" and done.adapter_version is None

    serve(Engine.load(base, adapter=files["one"], dtype="float32"), scenario)


def test_answers_can_be_recomputed_alone_and_differences_are_counted(base, files, engine):
    params = [engine.sampling("paper", max_new_tokens=8, steps=5, seed=n) for n in range(6)]

    async def scenario(backend):
        await asyncio.gather(*(backend.generate("hello", one, adapter=("one", "two", None)[n % 3]) for n, one in enumerate(params)))
        await until(lambda: backend.stats().audited == 3)
        assert backend.stats().flipped == 0
        # A batch whose numbers depend on its mates may answer otherwise; here every answer is made to.
        backend._core.parts.solo = lambda *_: (0,)
        await backend.generate("hello", params[0])
        await backend.generate("hello", params[0])
        await until(lambda: backend.stats().audited == 4)
        assert backend.stats().flipped == 1

    serve(engine, scenario, audit_every=2)


def test_without_batch_invariance_answers_still_come_and_flips_are_counted(tmp_path):
    engine = tiny_engine(tmp_path, batch_invariant=False)
    params = [engine.sampling("paper", max_new_tokens=4 + n, steps=6, seed=n) for n in range(12)]

    async def scenario(backend):
        done = await asyncio.gather(*(backend.generate("hello " * (1 + n), one) for n, one in enumerate(params)))
        await until(lambda: backend.stats().audited == 12)
        # Near-ties may flip; random weights have few of them.
        assert backend.stats().flipped <= 3
        return done

    assert len(serve(engine, scenario, audit_every=1)) == 12
