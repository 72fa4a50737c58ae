"""Server-sent events: chunks of committed text, refinement steps between them, and the end; a client that leaves cancels its request."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..backend import Committed, Finished, Stepped
from ..contracts import StepEvent
from ..engine import Engine
from ..errors import LadError
from .answers import CHAT, REASONS, Shape, details, logprobs_of, usage
from .bodies import StreamOptions
from .failures import failure_of
from .service import Asked, Service

# Confidences are sent with this many digits, and a position is sent again when one of them changes.
DIGITS = 3


class StepWriter:
    """One request's steps as clients get them: the positions that changed since the step before, or the whole canvas.

    A cell is [position, token id, text ("" where masked), confidence of the last prediction, status].
    """

    def __init__(self, engine: Engine, sends_canvas: bool) -> None:
        self._engine, self._sends_canvas = engine, sends_canvas
        self._cells: list[list[Any]] = []
        self._pieces: dict[int, str] = {engine.mask_id: ""}

    def write(self, event: StepEvent) -> dict[str, Any]:
        """Return a step as JSON values; `length` is the number of answer positions there are now."""
        rows = zip(event.token_ids, event.confidences, event.status, strict=True)
        cells = [[index, token, self._piece(token), round(value, DIGITS), status] for index, (token, value, status) in enumerate(rows)]
        before = self._cells if not self._sends_canvas else []
        sent = [cell for index, cell in enumerate(cells) if index >= len(before) or cell != before[index]]
        self._cells = cells
        open_cells = [value for _, _, _, value, status in cells if status != "fixed"]
        return {
            "step": event.step,
            "steps": event.steps,
            "length": len(cells),
            "cells": sent,
            "changed": sum(status in ("new", "changed") for status in event.status),
            "masked": sum(status == "masked" for status in event.status),
            "mean_confidence": round(sum(open_cells) / len(open_cells), DIGITS) if open_cells else 1.0,
            "elapsed_ms": round(event.elapsed_ms, 2),
            "is_last": event.is_last,
        }

    def _piece(self, token: int) -> str:
        if token not in self._pieces:
            self._pieces[token] = "" if token in self._engine.eos_ids else self._engine.codec.piece(token)
        return self._pieces[token]


class EventStream(Response):
    """A request's events until its end; it is cancelled when the client is gone or does not read for too long."""

    media_type = "text/event-stream"

    def __init__(self, shape: Shape, asked: Asked, service: Service, options: StreamOptions, wants_logprobs: bool) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        # A stream has no length.
        self.raw_headers = [header for header in self.raw_headers if header[0] != b"content-length"]
        self._shape, self._asked, self._service, self._options = shape, asked, service, options
        self._wants_logprobs = wants_logprobs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        handle = self._asked.handle
        gone = asyncio.create_task(until_gone(receive))
        sending = asyncio.create_task(self._send(scope, send))
        try:
            await asyncio.wait((gone, sending), return_when=asyncio.FIRST_COMPLETED)
            if not sending.done():
                self._service.counts.disconnects += 1
                scope["state"]["fields"]["end"] = "disconnect"
        finally:
            # After the end this does nothing.
            handle.cancel()
            for task in (gone, sending):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    async def _send(self, scope: Scope, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        limit = self._service.settings.stream_buffer_s
        try:
            async for data in self._chunks(scope["state"]["fields"]):
                text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, separators=(",", ":"))
                message = {"type": "http.response.body", "body": f"data: {text}\n\n".encode(), "more_body": True}
                await asyncio.wait_for(send(message), limit)
        except TimeoutError:
            scope["state"]["fields"]["end"] = "client does not read"
            return
        await send({"type": "http.response.body", "body": b""})

    async def _chunks(self, fields: dict[str, Any]) -> AsyncIterator[dict[str, Any] | str]:
        shape, asked, engine = self._shape, self._asked, self._service.backend.engine
        head = {"id": f"{shape.prefix}-{asked.handle.id}", "object": shape.piece, "created": asked.created, "model": asked.model}
        writer = StepWriter(engine, self._options.steps == "canvas")
        if shape is CHAT:
            yield {**head, "choices": [shape.delta("", None, role="assistant")]}
        try:
            async for event in asked.handle:
                if isinstance(event, Stepped):
                    yield {**head, "choices": [], "step": writer.write(event.event)}
                elif isinstance(event, Committed):
                    yield {**head, "choices": [shape.delta(event.text, None)]}
                elif isinstance(event, Finished):
                    self._service.finished(event)
                    result = event.result
                    fields.update(nfe=result.nfe, steps=result.steps, adapter=result.adapter)
                    logprobs = logprobs_of(shape, result, engine) if self._wants_logprobs else None
                    last = {**head, "choices": [shape.delta(None, REASONS[result.finish_reason], logprobs=logprobs)]}
                    yield {**last, "lad": details(asked, event)}
                    if self._options.include_usage:
                        yield {**head, "choices": [], "usage": usage(asked, result)}
        except LadError as error:
            failure = failure_of(error)
            fields["end"] = failure.code or type(error).__name__
            yield failure.body
        yield "[DONE]"


async def until_gone(receive: Receive) -> None:
    """Return when the client has closed its connection."""
    while (await receive())["type"] != "http.disconnect":
        pass
