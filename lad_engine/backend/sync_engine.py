"""The backend for programs with threads: the same calls as AsyncEngine, and they wait."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..config import SamplingParams
from ..contracts import GenerationResult
from ..engine import Engine
from ..text.prompts import Prompt
from .events import Event, Finished
from .limits import Limits
from .stats import AdapterStatus, Stats


class SyncHandle:
    """One submitted request: iterate it for its events (they wait), ask for `result`, or `cancel` it; see `async_engine.Handle`."""

    id: str

    def __iter__(self) -> Iterator[Event]:
        raise NotImplementedError

    def result(self, timeout_s: float | None = None) -> Finished:
        """Wait for the end; TimeoutError where it takes longer, the request goes on then."""
        raise NotImplementedError

    def cancel(self) -> None:
        """As `async_engine.Handle.cancel`; from any thread."""
        raise NotImplementedError


class SyncEngine:
    """The twin of AsyncEngine for threads: every method has its arguments, promises and errors. Any thread may call any of them."""

    def __init__(self, engine: Engine, limits: Limits | None = None) -> None:
        raise NotImplementedError

    def submit(self, prompt: str | Prompt, params: SamplingParams | None = None, **options: Any) -> SyncHandle:
        raise NotImplementedError

    def generate(
        self,
        prompts: str | Prompt | Sequence[str | Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        adapters: str | None | Sequence[str | None] = None,
    ) -> list[GenerationResult]:
        """Answer every prompt, as `Engine.generate` does: one result each, in order. The first failure is raised, the others go on."""
        raise NotImplementedError

    def stats(self) -> Stats:
        raise NotImplementedError

    def load_adapter(self, name: str, path: str | Path) -> AdapterStatus:
        raise NotImplementedError

    def unload_adapter(self, name: str) -> None:
        raise NotImplementedError

    def list_adapters(self) -> tuple[AdapterStatus, ...]:
        raise NotImplementedError

    def drain(self, timeout_s: float | None = None) -> bool:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> SyncEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
