"""What a submitted request reports: that it started, each refinement step, text that will not change any more, and its result."""

from __future__ import annotations

from dataclasses import dataclass

from ..contracts import GenerationResult, StepEvent

# What a request may ask to hear of beside its end: nothing, text as it is committed, or that and every refinement step.
WANTS = ("result", "text", "steps")


@dataclass(frozen=True)
class Started:
    """The request left the queue after `queued_ms`, to be computed with this version of this adapter (None: the engine's own)."""

    request_id: str
    adapter: str | None
    adapter_version: int | None
    queued_ms: float


@dataclass(frozen=True)
class Stepped:
    """One refinement step; `event.index` is 0 and its text is decoded."""

    request_id: str
    event: StepEvent


@dataclass(frozen=True)
class Committed:
    """Text that follows what was committed before and stays; all of it joined is the text of the result.

    A decode whose positions may change until its last step commits everything there at once.
    """

    request_id: str
    text: str


@dataclass(frozen=True)
class Finished:
    """The answer. `result.adapter` is the adapter's name; adapter_version counts what that name has held, from 1.

    adapter_version is None for the base and for an adapter merged when the engine was loaded. queued_ms and run_ms are wall time in
    the queue and from the first step's start to the result.
    """

    request_id: str
    result: GenerationResult
    adapter_version: int | None
    queued_ms: float
    run_ms: float

    @property
    def text(self) -> str:
        return self.result.text


Event = Started | Stepped | Committed | Finished
