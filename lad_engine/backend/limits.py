"""What a backend admits: rows and tokens at once, how much may wait, and for how long."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from ..errors import ConfigError


@dataclass(frozen=True)
class Limits:
    """The operator's limits of one backend.

    max_rows: requests of one bucket computed together. max_running: requests computed at once, over all buckets.
    max_tokens: canvas positions computed at once (prompt and answer, over all requests), None for no limit; a request that exceeds it
    by itself is refused.
    max_queue: requests that may wait; one more is refused with OverloadError. max_queued_tokens: the same in canvas positions.
    deadline_s: for requests that bring none; None is no limit. drain_s: how long `close` waits for running requests.
    audit_every: recompute one in so many answers alone while nothing else is to do, and count those that differ (0: never). Without
    batch_invariant near-tied tokens may flip with the batch; `Stats.audited` and `Stats.flipped` then say how often they did.
    """

    max_rows: int = 16
    max_running: int = 64
    max_tokens: int | None = None
    max_queue: int = 256
    max_queued_tokens: int | None = None
    deadline_s: float | None = None
    drain_s: float = 30.0
    audit_every: int = 0

    def __post_init__(self) -> None:
        for name in ("max_rows", "max_running", "max_queue"):
            _at_least(name, getattr(self, name), 1)
        for name in ("max_tokens", "max_queued_tokens"):
            if getattr(self, name) is not None:
                _at_least(name, getattr(self, name), 1)
        _at_least("audit_every", self.audit_every, 0)
        for name in ("deadline_s", "drain_s"):
            value = getattr(self, name)
            # A lock cannot wait for longer, nor without end but by None.
            if value is not None and not 0 < value <= threading.TIMEOUT_MAX:
                raise ConfigError(f"limits: {name} is {value!r}, expected more than 0 and at most {threading.TIMEOUT_MAX:.0f} seconds.")


def _at_least(name: str, value: int, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ConfigError(f"limits: {name} is {value!r}, expected an integer of at least {low}.")
