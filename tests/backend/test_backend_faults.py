"""A step that fails takes down only the requests it concerns, with a reason, and everybody else gets the answer it gets alone."""

from __future__ import annotations

import asyncio

import pytest
import torch
from backend_kit import facts_of, paused, random_requests, serve, tiny_engine

from lad_engine.backend import Stepped
from lad_engine.backend.groups import Groups
from lad_engine.backend.slots import Slots
from lad_engine.errors import DeviceMemoryError, StepError

POISON = 11


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture
def engine(folder):
    return tiny_engine(folder)


@pytest.fixture(scope="module")
def asked(folder):
    """Requests, and what they get alone."""
    engine, requests = tiny_engine(folder), random_requests(9, 4)
    return requests, [facts_of(engine.generate(prompt, params)[0]) for prompt, params in requests]


def poisoned(engine):
    """Return parameters of a request that shares its batches with the others and is known by its seed."""
    return engine.sampling("paper", max_new_tokens=8, steps=8, early_stop=False, seed=POISON)


async def ask_all(backend, requests, engine):
    handles = [backend.submit(*request) for request in requests]
    bad = backend.submit("hello", poisoned(engine))
    results = await asyncio.gather(*(handle.result() for handle in (*handles, bad)), return_exceptions=True)
    return results[:-1], results[-1]


def breaks_step(engine, monkeypatch, act):
    """Call `act(state)` before every step of a batch that holds the poisoned request, in its fourth step or later."""
    denoiser = engine._decoding._denoiser
    step = denoiser.step_

    def broken(state):
        hit = (state.seeds == POISON) & ~state.done & (state.row_steps >= 3)
        if bool(hit.any()):
            act(state)
        step(state)

    monkeypatch.setattr(denoiser, "step_", broken)


def test_an_exception_in_a_step_fails_only_the_request_that_causes_it(engine, asked, monkeypatch):
    def act(state):
        # Half done: what a failed step leaves in the buffers must not reach anybody.
        state.answer.fill_(7)
        raise RuntimeError("broken kernel")

    breaks_step(engine, monkeypatch, act)
    good, bad = serve(engine, lambda backend: ask_all(backend, asked[0], engine))
    assert [facts_of(done.result) for done in good] == asked[1]
    assert isinstance(bad, StepError) and "RuntimeError: broken kernel" in str(bad)
    assert isinstance(bad.__cause__, RuntimeError)


def test_an_exception_that_passes_fails_nobody_and_no_step_is_told_twice(engine, folder, monkeypatch):
    params = [engine.sampling("paper", max_new_tokens=8, steps=8, early_stop=False, seed=n) for n in (1, POISON, 3)]
    calls = []

    def act(state):
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("once")

    breaks_step(engine, monkeypatch, act)

    async def scenario(backend):
        async def steps_of(one):
            return [event.event.step async for event in backend.submit("hello", one, wants="steps") if isinstance(event, Stepped)]

        told = await asyncio.gather(*map(steps_of, params))
        assert backend.stats().retries == 1 and backend.stats().finished == 3
        return told

    assert serve(engine, scenario) == [list(range(8))] * 3


def test_logits_that_are_not_numbers_fail_their_own_row(engine, asked, monkeypatch):
    head = engine.model.head
    choose = head._choose_rows

    def broken(rows, unconditional, uniforms, tables, rule):
        # One row is read at a time where batches are invariant, and this one alone has this temperature.
        if bool((tables.columns[0] == 1.25).all()):
            rows = rows * torch.nan
        return choose(rows, unconditional, uniforms, tables, rule)

    monkeypatch.setattr(head, "_choose_rows", broken)

    async def scenario(backend):
        handles = [backend.submit(*request) for request in asked[0]]
        bad = backend.submit("hello", poisoned(engine).replace(temperature=1.25))
        results = await asyncio.gather(*(handle.result() for handle in (*handles, bad)), return_exceptions=True)
        assert backend.stats().failures == {"StepError": 1} and backend.stats().retries == 0
        return results

    *good, bad = serve(engine, scenario)
    assert [facts_of(done.result) for done in good] == asked[1]
    assert isinstance(bad, StepError) and "not finite" in str(bad)


def test_out_of_memory_halves_the_batch_and_retries_once(engine, monkeypatch):
    params = [engine.sampling("paper", max_new_tokens=8, steps=6, early_stop=False, seed=n) for n in range(8)]
    alone = [facts_of(engine.generate("hello", one)[0]) for one in params]
    denoiser, rows = engine._decoding._denoiser, []
    step = denoiser.step_

    def broken(state):
        rows.append(int((~state.done).sum()))
        if rows[-1] > 4:
            raise torch.OutOfMemoryError("simulated")
        step(state)

    monkeypatch.setattr(denoiser, "step_", broken)

    async def scenario(backend):
        with paused(backend):
            handles = [backend.submit("hello", one) for one in params]
        first = [await handle.result() for handle in handles]
        assert max(rows) == 8 and backend.stats().retries == 1 and backend.stats().failed == 0
        rows.clear()
        second = await asyncio.gather(*(backend.generate("hello", one) for one in params))
        assert max(rows) <= 4, "the batch was not kept small"
        return first + second

    assert [facts_of(done.result) for done in serve(engine, scenario)] == alone * 2


def test_out_of_memory_again_fails_with_what_to_do(engine, asked, monkeypatch):
    def act(state):
        raise torch.OutOfMemoryError("simulated")

    breaks_step(engine, monkeypatch, act)

    async def scenario(backend):
        bad = backend.submit("hello", poisoned(engine))
        with pytest.raises(DeviceMemoryError, match="shorter answer"):
            await bad.result()
        good = await backend.generate(*asked[0][0])
        assert facts_of(good.result) == asked[1][0]

    serve(engine, scenario)


def test_a_reader_that_raises_ends_its_own_request(engine, asked):
    async def scenario(backend):
        core, seen = backend._core, []

        def deliver(event):
            seen.append(event)
            if isinstance(event, Stepped):
                raise ValueError("the client's page is gone")

        handles = [backend.submit(*request) for request in asked[0]]
        core.submit("hello", poisoned(engine), deliver, wants="steps")
        results = [await handle.result() for handle in handles]
        assert isinstance(seen[-1], StepError) and "page is gone" in str(seen[-1])
        return results

    assert [facts_of(done.result) for done in serve(engine, scenario)] == asked[1]


def test_a_closed_event_loop_frees_its_requests(engine):
    from lad_engine.backend import AsyncEngine, Limits

    holder = {}

    async def leave():
        holder["backend"] = AsyncEngine(engine, Limits(drain_s=5))
        holder["backend"].submit("hello", engine.sampling("paper", steps=5000, max_new_tokens=8, early_stop=False), wants="steps")

    asyncio.run(leave())

    async def look():
        assert await holder["backend"].drain(5)
        await holder["backend"].close()
        assert holder["backend"].stats().failed == 1

    asyncio.run(look())


def test_a_fault_of_the_backend_itself_leaves_no_request_hanging(engine, monkeypatch):
    async def scenario(backend):
        with monkeypatch.context() as patch:
            patch.setattr(Groups, "step", lambda self, may_shrink: 1 / 0)
            with pytest.raises(StepError, match="dropped its batch"):
                await backend.generate("hello", poisoned(engine))
        assert (await backend.generate("hello", poisoned(engine))).text is not None

    serve(engine, scenario)


def test_a_batch_that_cannot_give_its_buffers_back_leaves_no_request_hanging(engine, monkeypatch):
    def act(state):
        raise RuntimeError("broken kernel")

    breaks_step(engine, monkeypatch, act)

    async def scenario(backend):
        with monkeypatch.context() as patch:
            patch.setattr(Slots, "close", lambda self: 1 / 0)
            with pytest.raises(StepError, match="dropped its batch"):
                await asyncio.wait_for(backend.generate("hello", poisoned(engine)), 20)
        assert backend.stats().running == 0
        return await backend.generate("hello", poisoned(engine).replace(seed=1))

    assert serve(engine, scenario).text is not None


def test_a_request_that_does_not_fit_the_memory_fails_alone(folder):
    engine = tiny_engine(folder, driver="replay")
    asked = [("hello", engine.sampling("paper", max_new_tokens=4, steps=2)), ("hello " * 40, engine.sampling("paper", max_new_tokens=120))]
    needed = [engine.memory_plan(*one).needed for one in asked]
    engine._decoding.graphs.backend.free_bytes = lambda: sum(needed) // 2

    async def scenario(backend):
        small, large = (backend.submit(*one) for one in asked)
        with pytest.raises(DeviceMemoryError, match="memory: a batch of"):
            await large.result()
        return await small.result()

    assert needed[0] < needed[1]
    serve(engine, scenario)
