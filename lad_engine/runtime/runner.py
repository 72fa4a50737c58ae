"""The eager loop: one step after another until every row is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from .readout import Outcome, read_outcome


@dataclass(frozen=True)
class Frame:
    """One step as a driver shows it: `view` has the buffers a readout needs, `rows` are (request, its row in the view)."""

    step: int
    view: Any
    rows: tuple[tuple[int, int], ...]


def steps(denoiser: Any, state: Any) -> Iterator[int]:
    """Advance `state` and yield the number of the step just taken, until all rows are done.

    The done flags are read between steps, and rows that are done rest; the state's own limit (`max_steps`) ends the loop in any case.
    """
    for step in range(state.taken_steps, state.max_steps):
        denoiser.step_(state)
        yield step
        state.resting = tuple(state.done.tolist())
        if all(state.resting):
            return


def run(denoiser: Any, state: Any, on_step: Callable[[int], None] | None = None) -> int:
    """Advance `state` to its end; returns the number of steps taken. `on_step` is called with each step's number."""
    taken = 0
    for step in steps(denoiser, state):
        taken += 1
        if on_step is not None:
            on_step(step)
    return taken


class EagerDecode:
    """One batch decoded step by step where it lies; the same use as `drivers.CapturedDecode`."""

    def __init__(self, denoiser: Any, state: Any) -> None:
        self._denoiser, self._state = denoiser, state

    def __enter__(self) -> EagerDecode:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is leased."""

    def frames(self, wants_events: bool = False) -> Iterator[Frame]:
        """Decode to the end, yielding a frame for each step; without `wants_events` it shows no rows."""
        rows = tuple((row, row) for row in range(self._state.done.shape[0])) if wants_events else ()
        for step in steps(self._denoiser, self._state):
            yield Frame(step, self._state, rows)

    def outcome(self, row: int) -> Outcome:
        """Return how a row ended."""
        return read_outcome(self._state, row)
