"""What a backend admits and refuses: queue, tokens, deadlines, turns, cancelling, draining, closing."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
from backend_kit import check_nothing_left, paused, random_requests, serve, tiny_engine, until

from lad_engine.backend import AsyncEngine, Limits, SyncEngine
from lad_engine.backend.engine_parts import EngineParts
from lad_engine.backend.queue import FairQueue
from lad_engine.errors import ClosedError, ConfigError, DeadlineError, OverloadError, RequestCancelledError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture
def engine(folder):
    return tiny_engine(folder)


def long_params(engine, **changes):
    return engine.sampling("paper", **{"max_new_tokens": 8, "steps": 2000, "early_stop": False, **changes})


def test_a_full_queue_refuses_and_says_when_to_ask_again(engine):
    async def scenario(backend):
        first = backend.submit("hello", long_params(engine))
        await until(lambda: backend.stats().running == 1)
        waiting = [backend.submit("hello", long_params(engine)) for _ in range(2)]
        with pytest.raises(OverloadError, match=r"2 requests wait already.*Ask again in") as refused:
            backend.submit("hello", long_params(engine))
        assert refused.value.retry_after_s > 0
        assert backend.stats().refused == 1 and backend.stats().waiting == 2
        for handle in (first, *waiting):
            handle.cancel()
            with pytest.raises(RequestCancelledError):
                await handle.result()

    serve(engine, scenario, max_queue=2, max_running=1)


def test_the_token_budget_holds_and_the_queue_has_one_too(engine):
    params = engine.sampling("paper", max_new_tokens=8, steps=60, early_stop=False)
    one = EngineParts(engine).canvas("hello", params, None).length

    async def scenario(backend):
        seen = []
        handles = [backend.submit("hello", params)]
        await until(lambda: backend.stats().running == 1)
        handles += [backend.submit("hello", params) for _ in range(3)]
        with pytest.raises(OverloadError):
            backend.submit("the " * 30, params)
        with pytest.raises(ConfigError, match="max_tokens"):
            backend.submit("word " * 100, params)
        while not all(handle._ended.done() for handle in handles):
            seen.append(backend.stats().running_tokens)
            await asyncio.sleep(0.001)
        assert one < max(seen) <= 2 * one + 8

    serve(engine, scenario, max_tokens=2 * one + 8, max_queued_tokens=3 * one)


def test_a_deadline_ends_a_request_in_the_queue_and_while_it_runs(engine):
    async def scenario(backend):
        running = backend.submit("hello", long_params(engine), deadline_s=0.3)
        waiting = backend.submit("hello", long_params(engine), deadline_s=0.1)
        with pytest.raises(DeadlineError, match=r"0\.1 s passed in the queue"):
            await waiting.result()
        with pytest.raises(DeadlineError, match=r"0\.3 s passed while it was computed"):
            async for _ in running:
                pass
        assert backend.stats().expired == 2
        with pytest.raises(ConfigError, match="deadline_s"):
            backend.submit("hello", deadline_s=0.0)

    serve(engine, scenario, max_running=1)


def test_cancelling_leaves_the_others_undisturbed(folder, engine):
    requests = random_requests(8, 2, steps_between=(40, 60))
    alone = tiny_engine(folder)

    async def scenario(backend):
        handles = [backend.submit(*request) for request in requests]
        doomed = [backend.submit("hello", long_params(engine, seed=n)) for n in range(4)]
        task = asyncio.ensure_future(backend.generate("hello", long_params(engine)))
        await until(lambda: backend.stats().waiting == 0 and backend.stats().submitted == 13)
        for handle in doomed:
            handle.cancel()
            handle.cancel()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        results = [await handle.result() for handle in handles]
        await until(lambda: backend.stats().cancelled == 5)
        handles[0].cancel()
        assert backend.stats().finished == 8
        return results

    for (prompt, params), done in zip(requests, serve(engine, scenario), strict=True):
        assert done.result.token_ids == alone.generate(prompt, params)[0].token_ids


def test_clients_take_turns():
    queue = FairQueue()
    for item in ("a1", "a2", "a3", "b1", "c1", "c2"):
        queue.push(item[0], item)
    assert queue.peek() == "a1" and len(queue) == 6
    assert queue.take(lambda item: item == "a2") == ["a2"]
    assert [queue.pop() for _ in range(len(queue))] == ["a1", "b1", "c1", "a3", "c2"]
    assert queue.peek() is None


def test_one_client_with_many_requests_does_not_hold_up_another(engine):
    params = engine.sampling("paper", max_new_tokens=8, steps=8, early_stop=False)

    async def scenario(backend):
        ended = []

        async def ask(client):
            await backend.submit("hello", params, client=client).result()
            ended.append(client)

        with paused(backend):
            asked = asyncio.gather(*(ask("many") for _ in range(12)), ask("one"))
            await until(lambda: backend.stats().waiting == 13)
        await asked
        assert ended.index("one") <= 1

    serve(engine, scenario, max_running=1)


def test_draining_finishes_what_was_taken_and_refuses_more(engine):
    async def scenario(backend):
        handles = [backend.submit(*request) for request in random_requests(6, 3)]
        draining = asyncio.ensure_future(backend.drain())
        await until(lambda: not backend.stats().is_accepting)
        with pytest.raises(ClosedError):
            backend.submit("hello")
        assert await draining
        assert all([(await handle.result()).text is not None for handle in handles])

    serve(engine, scenario)


def test_closing_fails_what_does_not_end_in_time(engine):
    async def run():
        backend = AsyncEngine(engine, Limits(max_running=1, drain_s=0.2))
        handles = [backend.submit("hello", long_params(engine, steps=60_000)) for _ in range(3)]
        assert not await backend.drain(0.1)
        await backend.close()
        for handle in handles:
            with pytest.raises(ClosedError):
                await handle.result()
        await backend.close()
        check_nothing_left(backend)
        assert backend.stats().failures == {"ClosedError": 3}

    asyncio.run(run())


def test_closing_answers_every_call_although_some_gave_up(engine):
    backend = SyncEngine(engine)
    core = backend._core
    # As if both came in a last step.
    core._do_calls = lambda: None
    given_up, waiting = core.call(list), core.call(list)
    given_up.cancel()
    backend.close()
    with pytest.raises(ClosedError):
        waiting.result(0)
    check_nothing_left(backend)


def test_a_result_can_be_waited_for_with_a_limit(engine):
    with SyncEngine(engine) as backend:
        handle = backend.submit("hello", long_params(engine))
        with pytest.raises(TimeoutError):
            handle.result(timeout_s=0.05)
        handle.cancel()
        with pytest.raises(RequestCancelledError):
            list(handle)


def test_limits_are_checked():
    with pytest.raises(ConfigError, match="max_rows is 0"):
        Limits(max_rows=0)
    with pytest.raises(ConfigError, match="deadline_s"):
        Limits(deadline_s=-1.0)
    with pytest.raises(ConfigError, match="drain_s is inf, expected more than 0 and at most"):
        Limits(drain_s=float("inf"))


def test_five_hundred_requests_from_32_threads_lose_none(folder):
    engine, alone = tiny_engine(folder), tiny_engine(folder)
    requests = random_requests(40, 11, steps_between=(3, 4))
    wanted = [alone.generate(prompt, params)[0].token_ids for prompt, params in requests]
    wrong: list[int] = []
    started = time.monotonic()
    with SyncEngine(engine, Limits(max_queue=600, audit_every=100)) as backend:

        def client(number: int) -> None:
            for turn in range(16):
                index = (number * 7 + turn) % len(requests)
                done = backend.submit(*requests[index], client=str(number), wants="result").result(60)
                if done.result.token_ids != wanted[index]:
                    wrong.append(index)

        threads = [threading.Thread(target=client, args=(number,)) for number in range(32)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        stats = backend.stats()
    assert wrong == [] and stats.finished == 512
    assert time.monotonic() - started < 30
    check_nothing_left(backend)
