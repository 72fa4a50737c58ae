"""The backend for programs with threads: the same calls as AsyncEngine, and they wait."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..adapters.resident import Names, each_name
from ..config import SamplingParams
from ..contracts import Canvas, GenerationResult
from ..engine import Engine
from ..errors import LadError, OverloadError
from ..loading import each_params
from ..text.prompts import Prompt
from .core import Core
from .events import Event, Finished
from .limits import Limits
from .request import Request
from .stats import AdapterStatus, Stats


class SyncHandle:
    """One submitted request: iterate it for its events (they wait), ask for `result`, or `cancel` it; see `async_engine.Handle`."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._events: queue.SimpleQueue[Event | LadError] = queue.SimpleQueue()
        self._end: Finished | LadError | None = None
        self._has_ended = threading.Event()
        self._request: Request | None = None

    @property
    def id(self) -> str:
        return self._request.id

    def __iter__(self) -> Iterator[Event]:
        while True:
            event = self._events.get()
            if isinstance(event, LadError):
                raise event
            yield event
            if isinstance(event, Finished):
                return

    def result(self, timeout_s: float | None = None) -> Finished:
        """Wait for the end; TimeoutError where it takes longer, the request goes on then."""
        if not self._has_ended.wait(timeout_s):
            raise TimeoutError(f"request {self.id}: no answer after {timeout_s} s.")
        if isinstance(self._end, LadError):
            raise self._end
        return self._end

    def cancel(self) -> None:
        """As `async_engine.Handle.cancel`; from any thread."""
        self._core.cancel(self._request)

    def _deliver(self, event: Event | LadError) -> None:
        self._events.put(event)
        if isinstance(event, (Finished, LadError)):
            self._end = event
            self._has_ended.set()


class SyncEngine:
    """The twin of AsyncEngine for threads: every method has its arguments, promises and errors. Any thread may call any of them."""

    def __init__(self, engine: Engine, limits: Limits | None = None) -> None:
        self.engine = engine
        self._core = Core(engine, limits)

    def submit(self, prompt: str | Prompt | Canvas, params: SamplingParams | None = None, **options: Any) -> SyncHandle:
        handle = SyncHandle(self._core)
        handle._request = self._core.submit(prompt, params, handle._deliver, **options)
        return handle

    def generate(
        self,
        prompts: str | Prompt | Canvas | Sequence[str | Prompt | Canvas],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        adapters: Names = None,
    ) -> list[GenerationResult]:
        """Answer every prompt, as `Engine.generate` does: one result each, in order; more than the queue takes wait outside of it.

        The first failure is raised, the others go on.
        """
        prompts = [prompts] if isinstance(prompts, (str, Prompt, Canvas)) else list(prompts)
        each = [params] * len(prompts) if params is None else each_params(params, prompts)
        asked = zip(prompts, each, each_name(adapters, len(prompts)), strict=True)
        handles: list[SyncHandle] = []
        for prompt, one, name in asked:
            handles.append(self._submit_patiently(handles, prompt, one, name))
        return [handle.result().result for handle in handles]

    def _submit_patiently(
        self, earlier: Sequence[SyncHandle], prompt: str | Prompt | Canvas, params: SamplingParams | None, adapter: str | None
    ) -> SyncHandle:
        while True:
            try:
                return self.submit(prompt, params, adapter=adapter, wants="result")
            except OverloadError as error:
                running = next((handle for handle in earlier if not handle._has_ended.is_set()), None)
                if running is None:
                    time.sleep(error.retry_after_s)
                else:
                    running._has_ended.wait(error.retry_after_s)

    def stats(self) -> Stats:
        return self._core.stats()

    def load_adapter(self, name: str, path: str | Path) -> AdapterStatus:
        return self._core.load_adapter(name, path).result()

    def unload_adapter(self, name: str) -> None:
        self._core.unload_adapter(name).result()

    def list_adapters(self) -> tuple[AdapterStatus, ...]:
        return self._core.list_adapters()

    def drain(self, timeout_s: float | None = None) -> bool:
        return self._core.drain(timeout_s)

    def close(self) -> None:
        self._core.close()

    def __enter__(self) -> SyncEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
