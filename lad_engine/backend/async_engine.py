"""The backend for asyncio programs: submit, read events, cancel; one thread of its own owns the device."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from ..config import SamplingParams
from ..engine import Engine
from ..text.prompts import Prompt
from .events import Event, Finished
from .limits import Limits
from .stats import AdapterStatus, Stats


class Handle:
    """One submitted request. Iterate it for its events, await `result`, or `cancel` it; `id` names it in events and logs.

    Iterating ends after Finished, or raises why there is none: DeadlineError, RequestCancelledError, StepError, DeviceMemoryError,
    ClosedError, AdapterError. One reader; it belongs to the event loop that submitted it.
    """

    id: str

    def __aiter__(self) -> AsyncIterator[Event]:
        """Yield Started, then Stepped and Committed as the request wants them, then Finished."""
        raise NotImplementedError

    async def result(self) -> Finished:
        """Wait for the end; also after or beside iterating. Raises as iterating does."""
        raise NotImplementedError

    def cancel(self) -> None:
        """Take the request out at the next step boundary; nothing happens where it has ended. Its error is RequestCancelledError."""
        raise NotImplementedError


class AsyncEngine:
    """An Engine that serves many requests at once; `async with AsyncEngine(engine) as backend: ...`.

    Requests join and leave batches at step boundaries. Where the engine is batch_invariant (the default on a CPU) every answer is the
    one the request gets alone. The engine must not be used directly while the backend is open.
    """

    def __init__(self, engine: Engine, limits: Limits | None = None) -> None:
        raise NotImplementedError

    @classmethod
    async def load(cls, *args: Any, limits: Limits | None = None, **settings: Any) -> AsyncEngine:
        """Load an engine off the event loop (arguments of `Engine.load`) and serve it."""
        raise NotImplementedError

    def submit(
        self,
        prompt: str | Prompt,
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
            params: None is the adapter's profile. adapter: a loaded adapter's name, None for what the engine has by itself.
            wants: "result", "text" or "steps", see `events.WANTS`. client: requests take turns by it. deadline_s: from now on.
        Raises:
            RequestError, ConfigError, AdapterError: it cannot be laid out, or a setting or name is unknown.
            OverloadError: the queue is full; `retry_after_s` says when to ask again. ClosedError: draining or closed.
        """
        raise NotImplementedError

    async def generate(self, prompt: str | Prompt, params: SamplingParams | None = None, **options: Any) -> Finished:
        """Submit (options as there) and wait; cancelling the waiting task cancels the request."""
        raise NotImplementedError

    def stats(self) -> Stats:
        """Return a snapshot of the counters."""
        raise NotImplementedError

    async def load_adapter(self, name: str, path: str | Path) -> AdapterStatus:
        """Load an adapter under a name or replace it, between two steps; running requests finish on the version they started with.

        Raises:
            AdapterError: it does not fit or no slot is free; what was there stays.
        """
        raise NotImplementedError

    async def unload_adapter(self, name: str) -> None:
        """Take a name away from new requests; running ones finish, waiting ones fail with AdapterError."""
        raise NotImplementedError

    def list_adapters(self) -> tuple[AdapterStatus, ...]:
        """Return the loaded adapters in the order they were added."""
        raise NotImplementedError

    async def drain(self, timeout_s: float | None = None) -> bool:
        """Refuse new requests and wait until all others have ended; False where the time ran out first."""
        raise NotImplementedError

    async def close(self) -> None:
        """Drain for `Limits.drain_s`, fail what is left with ClosedError, and end the thread. Calling it again does nothing."""
        raise NotImplementedError

    async def __aenter__(self) -> AsyncEngine:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
