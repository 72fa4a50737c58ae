"""The eager loop: one step after another until every row is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any


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
