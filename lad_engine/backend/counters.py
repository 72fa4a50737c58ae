"""What a backend counts while it runs."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..adapters.store import Resident
from ..config import SamplingParams
from ..contracts import Canvas, GenerationResult
from ..errors import DeadlineError, LadError, RequestCancelledError
from .request import Request
from .stats import Stats

# The share of the gap between two ends that the newest one decides.
NEWEST = 0.2
# Before anything has ended, a client is asked to come back after this many seconds; and never later than the last.
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 60.0


@dataclass(frozen=True)
class Audit:
    """A finished answer that shall be computed once more, alone."""

    canvas: Canvas
    params: SamplingParams
    adapter: str | None
    resident: Resident | None
    token_ids: tuple[int, ...]


class Counters:
    """The running totals behind `Stats`; written by the device thread, submitted and refused under the backend's lock."""

    def __init__(self) -> None:
        self.submitted = self.refused = self.finished = self.failed = self.cancelled = self.expired = 0
        self.steps = self.row_steps = self.retries = self.audited = self.flipped = 0
        self.tokens = self.nfe = self.stopped_early = 0
        self.step_ms = self.queue_ms = self.run_ms = 0.0
        self.failures: Counter[str] = Counter()
        self._last_end: float | None = None
        self._gap_s: float | None = None

    def stepped(self, rows: int, ms: float) -> None:
        """Count one step of all batches."""
        self.steps += 1
        self.row_steps += rows
        self.step_ms += ms

    def finish(self, request: Request, result: GenerationResult, run_ms: float) -> None:
        """Count an answer."""
        self.finished += 1
        self.queue_ms += request.queued_ms
        self.run_ms += run_ms
        self.tokens += round(result.tpf * result.nfe)
        self.nfe += result.nfe
        self.stopped_early += result.stopped_early
        now = time.monotonic()
        if self._last_end is not None:
            gap = now - self._last_end
            self._gap_s = gap if self._gap_s is None else (1 - NEWEST) * self._gap_s + NEWEST * gap
        self._last_end = now

    def fail(self, error: LadError) -> None:
        """Count a request that has no answer."""
        if isinstance(error, RequestCancelledError):
            self.cancelled += 1
        elif isinstance(error, DeadlineError):
            self.expired += 1
        else:
            self.failed += 1
            self.failures[type(error).__name__] += 1

    def retry_after(self, waiting: int) -> float:
        """Return in how many seconds half of what waits should be gone, as fast as requests have ended lately."""
        if self._gap_s is None:
            return FIRST_WAIT_S
        return min(LONGEST_WAIT_S, max(0.1, self._gap_s * max(1, waiting // 2)))

    def snapshot(self, waiting: Sequence[Request], running: Sequence[Request], buckets: dict[str, int], is_accepting: bool) -> Stats:
        """Return everything as it is now."""
        adapters: Counter[str] = Counter()
        for one in running:
            if one.resident is not None:
                adapters[f"{one.resident.name}@{one.resident.version}"] += 1
        names = ("submitted", "refused", "finished", "failed", "cancelled", "expired", "retries", "audited", "flipped")
        names += ("steps", "row_steps", "step_ms", "queue_ms", "run_ms", "tokens", "nfe", "stopped_early")
        counts: dict[str, Any] = {name: getattr(self, name) for name in names}
        return Stats(
            waiting=len(waiting),
            waiting_tokens=sum(one.tokens for one in waiting),
            running=len(running),
            running_tokens=sum(one.tokens for one in running),
            failures=dict(self.failures),
            is_accepting=is_accepting,
            buckets=buckets,
            adapters=dict(adapters),
            **counts,
        )
