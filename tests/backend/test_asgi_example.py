"""The example of an embedding serves answers, refuses bad requests, and stops when the client hangs up."""

from __future__ import annotations

import asyncio
import importlib.util
import json
from pathlib import Path

import pytest
from backend_kit import check_nothing_left, tiny_engine, until

from lad_engine import Engine, Limits


@pytest.fixture(scope="module")
def example():
    path = Path(__file__).parents[2] / "examples" / "asgi_app.py"
    spec = importlib.util.spec_from_file_location("asgi_app", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Client:
    """One HTTP exchange as an ASGI server would hold it."""

    def __init__(self, app, method: str, path: str, body: bytes = b"") -> None:
        self.sent: list[dict] = []
        self._received: asyncio.Queue = asyncio.Queue()
        self._received.put_nowait({"type": "http.request", "body": body[:5], "more_body": True})
        self._received.put_nowait({"type": "http.request", "body": body[5:], "more_body": False})
        scope = {"type": "http", "method": method, "path": path, "headers": []}
        self.task = asyncio.ensure_future(app(scope, self._received.get, self._send))

    async def _send(self, message: dict) -> None:
        self.sent.append(message)

    def hang_up(self) -> None:
        self._received.put_nowait({"type": "http.disconnect"})

    @property
    def lines(self) -> list[dict]:
        body = b"".join(message.get("body", b"") for message in self.sent[1:])
        return [json.loads(line) for line in body.splitlines()]


def run(app, scenario) -> None:
    """Start the application, run a scenario, and stop it."""

    async def main() -> None:
        messages: asyncio.Queue = asyncio.Queue()
        told: list[str] = []

        async def send(message: dict) -> None:
            told.append(message["type"])

        messages.put_nowait({"type": "lifespan.startup"})
        life = asyncio.ensure_future(app({"type": "lifespan"}, messages.get, send))
        await until(lambda: bool(told))
        await scenario()
        messages.put_nowait({"type": "lifespan.shutdown"})
        await life
        assert told == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
        check_nothing_left(app.backend)

    asyncio.run(main())


@pytest.fixture
def app(example, tmp_path):
    return example.App(lambda: tiny_engine(tmp_path), Limits(max_running=1, max_queue=1, drain_s=5))


def test_an_answer_is_streamed_as_lines(app):
    async def scenario():
        asked = json.dumps({"prompt": "the user", "steps": 4, "max_new_tokens": 8, "seed": 3}).encode()
        client = Client(app, "POST", "/answer", asked)
        await client.task
        assert client.sent[0]["status"] == 200
        text = "".join(line.get("text", "") for line in client.lines)
        params = app.backend.engine.sampling(steps=4, max_new_tokens=8, seed=3)
        assert text == (await app.backend.generate("the user", params)).text
        assert client.lines[-1]["done"] is True and client.lines[-1]["nfe"] <= 4
        stats = Client(app, "GET", "/stats")
        await stats.task
        assert stats.lines[0]["finished"] == 2

    run(app, scenario)


def test_bad_requests_and_overload_are_told_apart(app):
    async def scenario():
        for body, words in (
            (b"not json", "Expecting"),
            (b'{"steps": 3}', "prompt"),
            (b'{"prompt": "x", "stepz": 3}', "stepz"),
            (b"[1]", ""),
            (b"[" * 100_000, "recursion"),
        ):
            client = Client(app, "POST", "/answer", body)
            await client.task
            assert client.sent[0]["status"] == 400 and words in client.lines[0]["error"]
        missing = Client(app, "GET", "/nothing")
        await missing.task
        assert missing.sent[0]["status"] == 404
        long = json.dumps({"prompt": "hello", "steps": 3000, "max_new_tokens": 8, "early_stop": False}).encode()
        first = Client(app, "POST", "/answer", long)
        await until(lambda: app.backend.stats().running == 1)
        second = Client(app, "POST", "/answer", long)
        await until(lambda: app.backend.stats().waiting == 1)
        third = Client(app, "POST", "/answer", long)
        await third.task
        assert third.sent[0]["status"] == 429 and int(dict(third.sent[0]["headers"])[b"retry-after"]) >= 1
        for client in (first, second):
            client.hang_up()
            await client.task
        await until(lambda: app.backend.stats().cancelled == 2)

    run(app, scenario)


def test_an_engine_that_cannot_be_loaded_stops_the_server(example, tmp_path):
    told: list[dict] = []

    async def receive():
        return {"type": "lifespan.startup"}

    async def send(message):
        told.append(message)

    asyncio.run(example.App(lambda: Engine.load(tmp_path / "nothing"))({"type": "lifespan"}, receive, send))
    assert [message["type"] for message in told] == ["lifespan.startup.failed"] and "nothing" in told[0]["message"]
