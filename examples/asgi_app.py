"""Embed the backend in a plain ASGI application: no framework, no server of ours.

    uvicorn examples.asgi_app:app        # any ASGI server; or mount `app` inside your own

POST /answer takes JSON {"prompt": "...", "steps": 16, ...} (any sampling parameter) and streams one JSON object per line:
{"text": ...} whenever text is final, then {"done": true, "nfe": ..., "finish_reason": ...}. GET /stats shows the counters.
Closing the connection cancels the request.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import Awaitable, Callable
from typing import Any

from lad_engine import AsyncEngine, ConfigError, Engine, LadError, Limits, OverloadError, RequestError
from lad_engine.backend import Committed, Finished

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class App:
    """An ASGI application around one backend, loaded when the server starts and drained when it stops.

    load: returns the engine; it is called off the event loop.
    """

    def __init__(self, load: Callable[[], Engine] = Engine.load, limits: Limits | None = None) -> None:
        self._load, self._limits = load, limits
        self.backend: AsyncEngine | None = None

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Serve one connection, or the server's start and stop."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            if (scope["method"], scope["path"]) == ("POST", "/answer"):
                await self._answer(receive, send)
            elif (scope["method"], scope["path"]) == ("GET", "/stats"):
                await _send_json(send, 200, dataclasses.asdict(self.backend.stats()))
            else:
                await _send_json(send, 404, {"error": "expected POST /answer or GET /stats"})

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            self.backend = AsyncEngine(await asyncio.to_thread(self._load), self._limits)
        except LadError as error:
            # Said, not raised: a server takes an exception here for an application without a start, and serves it.
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.backend.close()
        await send({"type": "lifespan.shutdown.complete"})

    async def _answer(self, receive: Receive, send: Send) -> None:
        try:
            asked = json.loads(await _body(receive))
            handle = self.backend.submit(asked.pop("prompt"), self.backend.engine.sampling(**asked))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, ConfigError, RequestError) as error:
            await _send_json(send, 400, {"error": str(error)})
            return
        except OverloadError as error:
            await _send_json(send, 429, {"error": str(error)}, [(b"retry-after", str(round(error.retry_after_s + 0.5)).encode())])
            return
        except LadError as error:
            await _send_json(send, 503, {"error": str(error)})
            return
        # Whoever hangs up is not answered to the end.
        watching = asyncio.ensure_future(_wait_until_gone(receive))
        watching.add_done_callback(lambda task: None if task.cancelled() else handle.cancel())
        try:
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/x-ndjson")]})
            async for line in _lines(handle):
                await send({"type": "http.response.body", "body": line, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            handle.cancel()
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching


async def _lines(handle: Any) -> Any:
    """Yield what happens to a request as lines of JSON; the status is sent already, so a failure is a line too."""
    try:
        async for event in handle:
            if isinstance(event, Committed):
                yield _line({"text": event.text})
            elif isinstance(event, Finished):
                yield _line({"done": True, "nfe": event.result.nfe, "finish_reason": event.result.finish_reason})
    except LadError as error:
        yield _line({"error": str(error)})


async def _body(receive: Receive) -> bytes:
    parts = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


async def _wait_until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue


async def _send_json(send: Send, status: int, value: Any, headers: list[tuple[bytes, bytes]] | None = None) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"application/json"), *(headers or [])]})
    await send({"type": "http.response.body", "body": _line(value)})


def _line(value: Any) -> bytes:
    return json.dumps(value).encode() + b"\n"


app = App()
