"""Counters of a backend: what came in, how it ended, and what the device did."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Stats:
    """A snapshot. Every submitted request is in exactly one of waiting, running, finished, failed, cancelled, expired; refused ones
    were never submitted.

    waiting, waiting_tokens, running, running_tokens: now, tokens being canvas positions. submitted, refused, finished, failed,
    cancelled, expired: since the start. failures: failed requests by the reason's error class. steps: batch steps; row_steps: steps
    of single requests, so row_steps / steps is the mean batch. step_ms: total time of the steps. tokens: answer tokens of finished
    requests before their end; nfe: their forward evaluations. stopped_early: finished before their last step. retries: batches split
    after a failed step. buckets: requests running per bucket, by the bucket's words. adapters: requests running per adapter version,
    by "name@version". audited, flipped: see `Limits.audit_every`. queue_ms, run_ms: sums over finished requests.
    """

    waiting: int = 0
    waiting_tokens: int = 0
    running: int = 0
    running_tokens: int = 0
    submitted: int = 0
    refused: int = 0
    finished: int = 0
    failed: int = 0
    cancelled: int = 0
    expired: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    steps: int = 0
    row_steps: int = 0
    step_ms: float = 0.0
    queue_ms: float = 0.0
    run_ms: float = 0.0
    tokens: int = 0
    nfe: int = 0
    stopped_early: int = 0
    retries: int = 0
    audited: int = 0
    flipped: int = 0
    is_accepting: bool = True
    buckets: dict[str, int] = field(default_factory=dict)
    adapters: dict[str, int] = field(default_factory=dict)

    @property
    def tpf(self) -> float:
        """Answer tokens per forward evaluation, over all finished requests."""
        return self.tokens / self.nfe if self.nfe else 0.0


@dataclass(frozen=True)
class AdapterStatus:
    """A loaded adapter: its name, the version now given to new requests, and how many requests run on which version."""

    name: str
    version: int
    rank: int
    path: str | None
    running: dict[int, int]
