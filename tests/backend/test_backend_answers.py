"""Requests that arrive at any time, of any kind, get the answers they get alone; their events tell how."""

from __future__ import annotations

import asyncio
import random

import numpy as np
import pytest
from backend_kit import KINDS, check_nothing_left, facts_of, paused, random_requests, serve, tiny_engine, until
from tiny_families import make_family

from lad_engine import Engine, SamplingParams
from lad_engine.backend import Committed, Finished, Limits, Started, Stepped, SyncEngine
from lad_engine.contracts import Canvas
from lad_engine.errors import ConfigError, RequestError
from tiny_checkpoint import make_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="module")
def alone(folder):
    return tiny_engine(folder)


@pytest.mark.parametrize("seed", [0, 1])
def test_random_arrivals_get_the_answers_they_get_alone(folder, alone, seed):
    requests = random_requests(40, seed)

    async def scenario(backend):
        draw = random.Random(seed)

        async def ask(prompt, params):
            await asyncio.sleep(draw.random() * 0.6)
            return await backend.generate(prompt, params)

        results = await asyncio.gather(*(ask(*request) for request in requests))
        stats = backend.stats()
        assert stats.row_steps > 1.2 * stats.steps, "nothing was batched"
        return results

    results = serve(tiny_engine(folder), scenario, max_rows=8)
    for (prompt, params), done in zip(requests, results, strict=True):
        assert facts_of(done.result) == facts_of(alone.generate(prompt, params)[0]), params


@pytest.mark.parametrize("driver", ["replay", "loop"])
def test_captured_steps_give_the_same_tokens_as_they_do_alone(folder, driver):
    requests = random_requests(12, 5, KINDS[:1] + KINDS[2:4])

    async def scenario(backend):
        async def ask(number, request):
            await asyncio.sleep(0.05 * number)
            return await backend.generate(*request)

        return await asyncio.gather(*(ask(*one) for one in enumerate(requests)))

    results = serve(tiny_engine(folder, driver=driver), scenario, max_rows=4)
    engine = tiny_engine(folder, driver=driver)
    for (prompt, params), done in zip(requests, results, strict=True):
        assert done.result.token_ids == engine.generate(prompt, params)[0].token_ids


def test_events_are_the_steps_of_the_stream_and_end_with_the_result(folder, alone):
    prompt, params = "the user is in", alone.sampling("paper", max_new_tokens=10, steps=5, early_stop=False, seed=3)
    wanted = list(alone.stream(prompt, params))

    async def scenario(backend):
        handle = backend.submit(prompt, params, wants="steps", request_id="mine")
        events = [event async for event in handle]
        assert (await handle.result()) is events[-1]
        return events

    events = serve(tiny_engine(folder), scenario)
    assert isinstance(events[0], Started) and isinstance(events[-1], Finished)
    assert {event.request_id for event in events} == {"mine"}
    steps = [event.event for event in events if isinstance(event, Stepped)]
    same = ("step", "steps", "token_ids", "predicted_ids", "confidences", "status", "is_last", "text", "index")
    assert [[getattr(step, name) for name in same] for step in steps] == [[getattr(step, name) for name in same] for step in wanted[:-1]]
    assert "".join(event.text for event in events if isinstance(event, Committed)) == wanted[-1].text
    assert events[-1].result.text == wanted[-1].text and events[-1].run_ms > 0


def test_tokens_that_stay_are_committed_while_others_are_hidden(folder, alone):
    # Half a letter is held back, so the tokens here are letters.
    halves = tuple(token for token in range(320) if not alone.codec.decode([token]).isalpha())
    settings = {"remasking": "transfer", "max_new_tokens": 24, "steps": 12, "block_length": 4, "eos_treatment": "forbid"}
    params = alone.sampling("paper", suppress_tokens=halves, stop=("zzz",), early_stop=False, **settings)

    async def scenario(backend):
        return [event async for event in backend.submit("hello", params)]

    events = serve(tiny_engine(folder), scenario)
    texts = [event.text for event in events if isinstance(event, Committed)]
    assert len(texts) > 2
    assert "".join(texts) == events[-1].text == alone.generate("hello", params)[0].text
    assert not any(isinstance(event, Stepped) for event in events)
    # What may still grow into a stop string longer than the text is held back as a whole.
    stopped = params.replace(stop=(events[-1].text[:9],))

    async def until_stopped(backend):
        return [event async for event in backend.submit("hello", stopped)]

    events = serve(tiny_engine(folder), until_stopped)
    assert not any(isinstance(event, Committed) for event in events)
    assert events[-1].text == "" and events[-1].result.finish_reason == "stop"


@pytest.mark.parametrize("driver", ["eager", "replay"])
def test_masked_checkpoints_join_and_leave_too(tmp_path, driver):
    make_family(tmp_path, "llada")
    engine, served = (Engine.load(tmp_path, dtype="float32", driver=driver) for _ in range(2))
    kinds = (
        {"reveal": "transfer", "block_length": 4},
        {"reveal": "maskgit_plus"},
        {"reveal": "random"},
        {"reveal": "transfer", "threshold": 0.01},
    )
    params = [SamplingParams(max_new_tokens=8, steps=4 + n % 3, seed=n, **kinds[n % 4]) for n in range(12)]

    async def scenario(backend):
        async def ask(n):
            await asyncio.sleep(0.02 * n)
            return await backend.generate("the user " * (1 + n % 3), params[n])

        return await asyncio.gather(*map(ask, range(12)))

    for n, done in enumerate(serve(served, scenario, max_rows=4)):
        wanted = engine.generate("the user " * (1 + n % 3), params[n])[0]
        assert (done.result.token_ids, done.result.step_map, done.result.nfe) == (wanted.token_ids, wanted.step_map, wanted.nfe)


def test_a_family_whose_rows_start_together_is_served_in_groups(folder, alone, monkeypatch):
    requests = random_requests(6, 8)
    engine = tiny_engine(folder)
    monkeypatch.delattr(type(engine._decoding._buckets), "seat")

    async def scenario(backend):
        assert not backend._core.parts.can_join
        doomed = backend.submit("hello", alone.sampling(steps=3000, early_stop=False))
        done = await asyncio.gather(*(backend.generate(*request) for request in requests))
        doomed.cancel()
        return done

    for (prompt, params), done in zip(requests, serve(engine, scenario, max_rows=4), strict=True):
        assert facts_of(done.result) == facts_of(alone.generate(prompt, params)[0])


def test_a_canvas_of_the_callers_is_decoded_as_it_is(folder, alone):
    ids = np.array([*alone.codec.encode("the user is"), alone.mask_id, 20, alone.mask_id, 21], np.int64)
    canvas = Canvas(ids, ids == alone.mask_id, len(ids) - 4)
    params = alone.sampling("paper", max_new_tokens=4, steps=3)

    async def scenario(backend):
        with pytest.raises(RequestError, match="vocabulary"):
            backend.submit(Canvas(ids + 400, canvas.is_open, canvas.answer_start), params)
        with pytest.raises(RequestError, match="window"):
            backend.submit(Canvas(np.zeros(600, np.int64), np.zeros(600, bool), 5), params)
        return await backend.generate(canvas, params)

    tokens = serve(tiny_engine(folder), scenario).result.token_ids
    assert tokens[1::2] == (20, 21) and alone.mask_id not in tokens


def test_a_bad_request_is_refused_at_once(folder):
    async def scenario(backend):
        with pytest.raises(RequestError, match="empty"):
            backend.submit("  ")
        with pytest.raises(RequestError, match="positions"):
            backend.submit("word " * 2000)
        with pytest.raises(ConfigError, match="wants is 'all'"):
            backend.submit("hello", wants="all")
        with pytest.raises(ConfigError, match="suppress_tokens"):
            backend.submit("hello", backend.engine.sampling(suppress_tokens=(10**6,)))
        assert backend.stats().submitted == 0

    serve(tiny_engine(folder), scenario)


def test_the_synchronous_twin_answers_as_the_engine_does(folder, alone):
    requests = random_requests(6, 9)
    prompts, params = [prompt for prompt, _ in requests], [one for _, one in requests]
    with SyncEngine(tiny_engine(folder), Limits(max_rows=4, max_running=1, max_queue=2)) as backend:
        assert [facts_of(one) for one in backend.generate(prompts, params)] == [facts_of(one) for one in alone.generate(prompts, params)]
        handle = backend.submit("hello", params[0], wants="steps")
        events = list(handle)
        assert isinstance(events[0], Started) and events[-1] is handle.result()
        assert backend.drain(5) and backend.stats().finished == 7
    check_nothing_left(backend)


def test_rows_of_few_candidates_share_a_batch_where_they_share_a_product(tmp_path):
    folder = make_tiny(tmp_path, tie=True, vocab_size=5120)
    rules = ({"temperature": 0.8, "top_k": 16}, {"temperature": 0.0}, {"temperature": 0.8, "top_k": 64})

    def shapes(**settings):
        engine = Engine.load(folder, adapter=None, dtype="float32", **settings)
        asked = [engine.sampling("paper", max_new_tokens=8, steps=400, early_stop=False, **rule) for rule in rules]

        async def scenario(backend):
            with paused(backend):
                handles = [backend.submit("hello", params) for params in asked]
            await until(lambda: backend.stats().steps > 0)
            found = len(list(backend._core._groups))
            for handle in handles:
                handle.cancel()
            return found

        return serve(engine, scenario)

    # 5,120 pieces are enough to sort 16 of them for everybody, not 64; and alone everybody sorts what it needs.
    assert (shapes(batch_invariant=False), shapes(batch_invariant=True)) == (2, 3)
