"""The backend for asyncio programs: submit, read events, cancel; one thread of its own owns the device."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from ..config import SamplingParams
from ..contracts import Canvas
from ..engine import Engine
from ..errors import LadError
from ..text.prompts import Prompt
from .core import Core
from .events import Event, Finished
from .limits import Limits
from .request import Request
from .stats import AdapterStatus, Stats


class Mailbox:
    """Events on their way from the device thread to one event loop, which is woken once for all that wait."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._waiting: deque[tuple[Handle, Event | LadError]] = deque()
        self._is_awaited = False

    def put(self, handle: Handle, event: Event | LadError) -> None:
        """Hand an event over, from the device thread; RuntimeError where the loop is closed, which ends the request."""
        if self.loop.is_closed():
            raise RuntimeError("the event loop is closed")
        self._waiting.append((handle, event))
        if not self._is_awaited:
            self._is_awaited = True
            self.loop.call_soon_threadsafe(self._hand_out)

    def _hand_out(self) -> None:
        # Cleared first: what is put from here on is taken below, or wakes the loop again.
        self._is_awaited = False
        while self._waiting:
            handle, event = self._waiting.popleft()
            handle._take(event)


class Handle:
    """One submitted request. Iterate it for its events, await `result`, or `cancel` it; `id` names it in events and logs.

    Iterating ends after Finished, or raises why there is none: DeadlineError, RequestCancelledError, StepError, DeviceMemoryError,
    ClosedError, AdapterError. One reader; it belongs to the event loop that submitted it.
    """

    def __init__(self, core: Core, box: Mailbox) -> None:
        self._core, self._box = core, box
        self._events: asyncio.Queue[Event | LadError] = asyncio.Queue()
        self._ended: asyncio.Future[Finished] = box.loop.create_future()
        # Who reads events alone never asks for the future's exception.
        self._ended.add_done_callback(lambda future: future.cancelled() or future.exception())
        self._request: Request | None = None

    @property
    def id(self) -> str:
        return self._request.id

    @property
    def prompt_tokens(self) -> int:
        """Positions in front of the answer region."""
        return self._request.canvas.answer_start

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Yield Started, then Stepped and Committed as the request wants them, then Finished."""
        while True:
            event = await self._events.get()
            if isinstance(event, LadError):
                raise event
            yield event
            if isinstance(event, Finished):
                return

    async def result(self) -> Finished:
        """Wait for the end; also after or beside iterating. Raises as iterating does."""
        return await asyncio.shield(self._ended)

    def cancel(self) -> None:
        """Take the request out at the next step boundary; nothing happens where it has ended. Its error is RequestCancelledError."""
        self._core.cancel(self._request)

    def _deliver(self, event: Event | LadError) -> None:
        self._box.put(self, event)

    def _take(self, event: Event | LadError) -> None:
        self._events.put_nowait(event)
        if self._ended.done():
            return
        if isinstance(event, Finished):
            self._ended.set_result(event)
        elif isinstance(event, LadError):
            self._ended.set_exception(event)


class AsyncEngine:
    """An Engine that serves many requests at once; `async with AsyncEngine(engine) as backend: ...`.

    Requests join and leave batches at step boundaries. Where the engine is batch_invariant (the default on a CPU) every answer is the
    one the request gets alone. The engine must not be used directly while the backend is open.
    """

    def __init__(self, engine: Engine, limits: Limits | None = None) -> None:
        self.engine = engine
        self._core = Core(engine, limits)
        self._box: Mailbox | None = None

    @property
    def limits(self) -> Limits:
        return self._core.limits

    @classmethod
    async def load(cls, *args: Any, limits: Limits | None = None, **settings: Any) -> AsyncEngine:
        """Load an engine off the event loop (arguments of `Engine.load`) and serve it."""
        return cls(await asyncio.to_thread(Engine.load, *args, **settings), limits)

    def submit(
        self,
        prompt: str | Prompt | Canvas,
        params: SamplingParams | None = None,
        *,
        adapter: str | None = None,
        wants: str = "text",
        client: str = "",
        deadline_s: float | None = None,
        request_id: str | None = None,
    ) -> Handle:
        """Queue a request; it returns at once.

        Args:
            prompt: or a canvas that the caller laid out, any fixed tokens around open positions. params: None is the profile that the
                adapter has now.
            adapter: a loaded adapter's name, None for what the engine has by itself. wants: "result", "text" or "steps", see
                `events.WANTS`. client: requests take turns by it. deadline_s: from now on.
        Raises:
            RequestError, ConfigError, AdapterError: it cannot be laid out or decoded, or a setting or name is unknown. What
                `Engine.generate` would refuse is refused here, not later.
            OverloadError: the queue is full; `retry_after_s` says when to ask again. ClosedError: draining or closed.
        """
        loop, box = asyncio.get_running_loop(), self._box
        if box is None or box.loop is not loop:
            self._box = box = Mailbox(loop)
        handle = Handle(self._core, box)
        options = {"adapter": adapter, "wants": wants, "client": client, "deadline_s": deadline_s, "request_id": request_id}
        handle._request = self._core.submit(prompt, params, handle._deliver, **options)
        return handle

    async def generate(self, prompt: str | Prompt | Canvas, params: SamplingParams | None = None, **options: Any) -> Finished:
        """Submit (options as there) and wait; cancelling the waiting task cancels the request."""
        handle = self.submit(prompt, params, **{"wants": "result", **options})
        try:
            return await handle.result()
        except asyncio.CancelledError:
            handle.cancel()
            raise

    def stats(self) -> Stats:
        """Return a snapshot of the counters."""
        return self._core.stats()

    async def load_adapter(self, name: str, path: str | Path) -> AdapterStatus:
        """Load an adapter under a name or replace it, between two steps; running requests finish on the version they started with.

        Raises:
            AdapterError: it does not fit or no slot is free; what was there stays.
        """
        future = await asyncio.to_thread(self._core.load_adapter, name, path)
        return await asyncio.wrap_future(future)

    async def unload_adapter(self, name: str) -> None:
        """Take a name away from new requests; running ones finish, waiting ones fail with AdapterError."""
        await asyncio.wrap_future(self._core.unload_adapter(name))

    def list_adapters(self) -> tuple[AdapterStatus, ...]:
        """Return the loaded adapters in the order they were added."""
        return self._core.list_adapters()

    async def drain(self, timeout_s: float | None = None) -> bool:
        """Refuse new requests and wait until all others have ended; False where the time ran out first."""
        return await asyncio.to_thread(self._core.drain, timeout_s)

    async def close(self) -> None:
        """Drain for `Limits.drain_s`, fail what is left with ClosedError, and end the thread. Calling it again does nothing."""
        await asyncio.to_thread(self._core.close)

    async def __aenter__(self) -> AsyncEngine:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
