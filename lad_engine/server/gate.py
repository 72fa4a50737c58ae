"""What every request passes before an endpoint sees it: its id, the Host header, the key, the content type and the size; and the log."""

from __future__ import annotations

import hmac
import json
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from .failures import Failure
from .service import Service
from .settings import KIB

log = logging.getLogger("lad_engine.server")
# Probes that an orchestrator makes without a key, and the pages' files, which are the same for everybody and ask for one themselves.
# /page-facts is not among them: it names the operator's adapters.
WITHOUT_KEY = ("/health", "/ready", "/", "/advanced", "/page/")
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Gate:
    """ASGI middleware around the whole app; `scope["state"]` gets request_id and client for the endpoints."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, headers = time.perf_counter(), _headers(scope)
        given = headers.get("x-request-id", "")
        request_id = given if _ID.fullmatch(given) else uuid.uuid4().hex[:16]
        scope.setdefault("state", {}).update(request_id=request_id, client=self._client(scope, headers), fields={})
        status = 0

        async def send_named(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode()), *SAFETY]
            await send(message)

        try:
            self._admit(scope, headers)
            body = _Limited(receive, self._service.settings.max_body_kib * KIB)
            await self._app(scope, body.receive, send_named)
        except Failure as failure:
            if status == 0:
                await send_failure(failure, send_named)
        except Exception:
            # Nothing is expected to arrive here; were it to, the client gets an answer and the log the reason.
            log.exception("an endpoint failed", extra={"fields": {"request_id": request_id}})
            if status == 0:
                failure = Failure(500, f"request {request_id}: the server failed; its log has the details.", "server_error")
                await send_failure(failure, send_named)
        finally:
            self._record(scope, status, time.perf_counter() - started)

    def _admit(self, scope: Scope, headers: dict[str, str]) -> None:
        settings, path, method = self._service.settings, scope["path"], scope["method"]
        if not settings.allows_host(headers.get("host", "")):
            raise Failure(403, f"host is {headers.get('host', '')[:80]!r}, which this server does not answer to.", "permission_error")
        if settings.api_keys and not _needs_no_key(path):
            kind, _, key = headers.get("authorization", "").partition(" ")
            # Every key is compared, so that the time taken says nothing about which one came near.
            matches = [hmac.compare_digest(key.strip().encode(), known.encode()) for known in settings.api_keys]
            if kind.lower() != "bearer" or not any(matches):
                message = "authorization: there is no valid API key, expected 'Bearer KEY'. Ask the operator for one."
                raise Failure(401, message, "authentication_error", None, "invalid_api_key", {"WWW-Authenticate": "Bearer"})
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()):
            raise Failure(400, f"content-length is {length[:40]!r}, expected a number.")
        if int(length[:20]) > settings.max_body_kib * KIB:
            raise _too_large(settings.max_body_kib * KIB)
        if method == "POST" and headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            # A web page of another origin can send text or a form without asking first, but not this.
            raise Failure(415, f"content-type is {headers.get('content-type', '')[:80]!r}, expected application/json.")

    def _client(self, scope: Scope, headers: dict[str, str]) -> str:
        """Return who takes turns: a key's holder, else an address."""
        key = headers.get("authorization", "") if self._service.settings.api_keys else ""
        return key or str((scope.get("client") or ("",))[0])

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "") or "(none)"
        # A client may invent methods, and every one counted apart is kept.
        method = scope["method"] if scope["method"] in METHODS else "other"
        self._service.counts.response(method, route, status, seconds)
        fields = {"method": scope["method"], "path": route, "status": status, "ms": round(seconds * 1e3, 2)}
        log.info("request", extra={"fields": {"request_id": scope["state"]["request_id"], **fields, **scope["state"]["fields"]}})


class _Limited:
    """A body that may not grow beyond a limit, whatever its header said."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive, self._limit, self._size = receive, limit, 0

    async def receive(self) -> MutableMapping[str, Any]:
        message = await self._receive()
        self._size += len(message.get("body", b""))
        if self._size > self._limit:
            raise _too_large(self._limit)
        return message


class JsonLines(logging.Formatter):
    """One JSON object per record: time, level, logger, message, and the fields a record brings. Prompts are never logged."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


async def send_failure(failure: Failure, send: Send) -> None:
    """Answer with a failure without any framework."""
    body = json.dumps(failure.body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(name.lower().encode(), value.encode()) for name, value in failure.headers.items()]
    await send({"type": "http.response.start", "status": failure.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


SAFETY = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'"),
)


def _headers(scope: Scope) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


def _needs_no_key(path: str) -> bool:
    return any(path == free or (free.endswith("/") and free != "/" and path.startswith(free)) for free in WITHOUT_KEY)


def _too_large(limit: int) -> Failure:
    return Failure(413, f"body: it is too large, expected at most {limit // KIB} KiB. Send less.", code="body_too_large")
