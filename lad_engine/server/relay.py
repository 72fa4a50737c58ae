"""Requests between processes: a front admits them and hands each to a replica, which runs the plain server's app without a socket.

An answer is a sequence of ASGI messages. Where a replica dies before its end, the request begins again on another one: answers depend on
the request alone, so what the client has already is compared and left out, and the stream goes on behind it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from ..errors import LadError, OverloadError
from .failures import RETRY_CLOSED_S, Failure, failure_of
from .gate import SAFETY, Gate, Receive, Scope, Send
from .metrics import CONTENT_TYPE, Counts
from .settings import ServerSettings

log = logging.getLogger("lad_engine.server")
Message = MutableMapping[str, Any]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
# (adapter's name or "", scope, body) -> the messages of one try at a replica.
Call = Callable[[str, dict[str, Any], bytes], AsyncIterator[Message]]

# What of a scope a replica needs, all of it plain data.
PASSED_ON = ("type", "http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path", "headers", "client", "server")
# How long an app may take to notice that its client is gone.
LEAVE_S = 5.0
# What two runs of one request may differ in.
_VARIES = re.compile(rb'"(?:created|elapsed_ms|queued_ms|run_ms|adapter_version)":[^,}]*')
_CREATED = re.compile(rb'"created":\d+')
# The front's gate writes these itself.
_WRITTEN_AGAIN = {b"x-request-id", *(name for name, _ in SAFETY)}


class ReplicaLostError(Exception):
    """A replica ended before its answer did."""


class _DiffersError(Exception):
    """A request's second run did not begin as its first did."""


async def answer_of(app: App, scope: Mapping[str, Any], body: bytes) -> AsyncIterator[Message]:
    """Run one request through `app` and yield what it sends; closing or cancelling this tells the app that its client is gone.

    The first message also names its `route`, for the front's log.
    """
    scope = {**scope, "asgi": {"version": "3.0"}}
    sent: asyncio.Queue[Message | None] = asyncio.Queue()
    unread, gone = [body], asyncio.Event()

    async def receive() -> Message:
        if unread:
            return {"type": "http.request", "body": unread.pop(), "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def run() -> None:
        try:
            await app(scope, receive, sent.put)
        finally:
            sent.put_nowait(None)

    running = asyncio.create_task(run())
    try:
        while (message := await sent.get()) is not None:
            if message["type"] == "http.response.start":
                message = {**message, "route": getattr(scope.get("route"), "path", "")}
            yield message
        await running
    finally:
        gone.set()
        await asyncio.wait((running,), timeout=LEAVE_S)
        running.cancel()


@dataclass(frozen=True)
class _Route:
    """What the gate's log reads of a route."""

    path: str


class Front:
    """ASGI app in front of replicas. What `Gate` refuses no replica sees; everything else is one replica's answer, passed on.

    call: one try at a replica. collect: each replica's metrics by its name. adapters: names for which a replica is chosen that has the
    adapter. tries: replicas that may be lost before a request fails with 503 `replica_lost`.
    """

    def __init__(
        self,
        call: Call,
        collect: Callable[[], Awaitable[Mapping[str, str]]],
        settings: ServerSettings,
        adapters: Collection[str] = (),
        tries: int = 3,
    ) -> None:
        self._call, self._collect, self._adapters, self._tries = call, collect, frozenset(adapters), tries
        # What the gate looks at.
        self.settings, self.counts = settings, Counts()
        self.lost = 0
        self._gate = Gate(self._answer, self)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection, or the server's start and stop."""
        if scope["type"] == "lifespan":
            for event in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{event}.complete"})
        elif scope["type"] == "http":
            await self._gate(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, method = scope["path"], scope["method"]
        if path == "/metrics" and method == "GET":
            scope["route"] = _Route(path)
            await _send_text(send, merged({**await self._collect(), "front": self._metrics()}))
            return
        if path.startswith("/v1/adapters"):
            message = "adapters: replicas have those named when the server was started. Deploy it again with others."
            raise Failure(403, message, "permission_error")
        body = await _read(receive)
        if body is not None:
            await self._pass_on(scope, body, send)

    async def _pass_on(self, scope: Scope, body: bytes, send: Send) -> None:
        """Try replicas until one has answered; what had begun and cannot go on ends with an error event."""
        request_id, answer = scope["state"]["request_id"], _Answer(scope, send)
        passed = {name: scope[name] for name in PASSED_ON if name in scope}
        kept = [(name, value) for name, value in passed["headers"] if name.lower() != b"x-request-id"]
        passed["headers"] = [*kept, (b"x-request-id", request_id.encode())]
        adapter, lost = self._adapter(body), 0
        try:
            while True:
                try:
                    async with contextlib.aclosing(self._call(adapter, passed, body)) as messages:
                        async for message in messages:
                            await answer.take(message)
                    return
                except ReplicaLostError as error:
                    lost += 1
                    self.lost += 1
                    log.warning("a replica was lost", extra={"fields": {"request_id": request_id, "try": lost, "reason": str(error)[:200]}})
                    if lost == self._tries:
                        raise _lost(f"it was begun {lost} times and no replica lived to its end") from error
                    answer.begin_again()
                except OverloadError as error:
                    if not lost:
                        raise
                    # It was admitted once: now it waits its turn.
                    await asyncio.sleep(error.retry_after_s)
                except _DiffersError as error:
                    raise _lost(
                        "its replica ended, and another one's answer differs from what was sent (batch_invariant is off)"
                    ) from error
        except (Failure, LadError) as error:
            failure = failure_of(error) if isinstance(error, LadError) else error
            if not answer.has_begun:
                raise failure from error
            scope["state"]["fields"]["end"] = failure.code
            await answer.end(failure)

    def _adapter(self, body: bytes) -> str:
        """Return the adapter a body asks for, "" where none of ours is named; what is wrong with the body, the replica says."""
        try:
            asked = json.loads(body).get("model") if body else None
        except (ValueError, AttributeError, RecursionError):
            return ""
        return asked if isinstance(asked, str) and asked in self._adapters else ""

    def _metrics(self) -> str:
        lines = ["# HELP lad_front_responses_total Responses by status.", "# TYPE lad_front_responses_total counter"]
        statuses: dict[int, int] = {}
        for (_, _, status), count in self.counts.responses.items():
            statuses[status] = statuses.get(status, 0) + count
        lines += [f'lad_front_responses_total{{status="{status}"}} {count}' for status, count in sorted(statuses.items())]
        lines += ["# HELP lad_front_lost_total Tries that ended with their replica.", "# TYPE lad_front_lost_total counter"]
        return "\n".join([*lines, f"lad_front_lost_total {self.lost}"])


class _Answer:
    """What a client got of an answer so far; a second run is compared with it and goes on behind it.

    The head waits for the first piece of the body, so that a whole answer is sent by one replica alone.
    """

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope, self._send = scope, send
        self._head: Message = {}
        self._sent: list[bytes] = []
        self._at, self._is_again = 0, False
        self._created = b""

    @property
    def has_begun(self) -> bool:
        return bool(self._sent)

    def begin_again(self) -> None:
        """Expect the answer from its beginning."""
        self._at, self._is_again = 0, True

    async def take(self, message: Message) -> None:
        """Pass a message on unless the client has it; _DiffersError where it is not what the client has."""
        if message["type"] == "http.response.start":
            if not self.has_begun:
                self._scope["route"] = _Route(message.pop("route"))
                self._head = {**message, "headers": [pair for pair in message["headers"] if pair[0] not in _WRITTEN_AGAIN]}
            return
        body = message.get("body", b"")
        mark = hashlib.blake2b(_VARIES.sub(b"", body), digest_size=8).digest()
        self._at += 1
        if self._at <= len(self._sent):
            if mark != self._sent[self._at - 1]:
                raise _DiffersError
            return
        if not self.has_begun:
            await self._send(self._head)
            found = _CREATED.search(body)
            self._created = found.group() if found else b""
        elif self._is_again and self._created:
            body = _CREATED.sub(self._created, body, count=1)
        self._sent.append(mark)
        await self._send({**message, "body": body})

    async def end(self, failure: Failure) -> None:
        """End what has begun; a stream says why."""
        is_stream = any(value.startswith(b"text/event-stream") for name, value in self._head["headers"] if name == b"content-type")
        body = f"data: {json.dumps(failure.body)}\n\ndata: [DONE]\n\n".encode() if is_stream else b""
        await self._send({"type": "http.response.body", "body": body})


def merged(texts: Mapping[str, str]) -> str:
    """Return the metrics of several replicas as one text, in which every sample names its replica."""
    families: dict[str, list[str]] = {}
    for replica, text in texts.items():
        family = ""
        for line in text.splitlines():
            if line.startswith("#"):
                family = line.split(" ")[2]
                lines = families.setdefault(family, [])
                if line not in lines:
                    lines.append(line)
            else:
                name, _, value = line.rpartition(" ")
                name, brace, labels = name.partition("{")
                families[family].append(f'{name}{{replica="{replica}"{"," + labels if brace else "}"} {value}')
    return "\n".join(line for lines in families.values() for line in lines) + "\n"


async def _read(receive: Receive) -> bytes | None:
    """Return the whole body, None where the client left before its end."""
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


async def _send_text(send: Send, text: str) -> None:
    headers = [(b"content-type", CONTENT_TYPE.encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})


def _lost(what: str) -> Failure:
    return Failure(503, f"request: {what}. Ask again.", "server_error", None, "replica_lost", {"Retry-After": str(RETRY_CLOSED_S)})
