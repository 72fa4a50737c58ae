"""The host facts of a batch's rows while rows come and go: what a request brings into a free row, and what leaves with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def seat(state: Any, slot: int, row: Any, names: Sequence[str]) -> None:
    """Take the host facts `names` of a request, a batch of one, over into row `slot`, whose tensors hold it already; it begins now."""
    if not state.is_static:
        for name in names:
            _put(state, name, slot, getattr(row, name)[0])
        _put(state, "joined", slot, state.taken_steps)
        _put(state, "resting", slot, False)


def rest(state: Any, slot: int) -> None:
    """Leave a row out that is done."""
    if not state.is_static:
        _put(state, "resting", slot, True)


def move(source: Any, target: Any, slots: Sequence[int], names: Sequence[str]) -> None:
    """Take the host facts of rows `slots` of one batch over into the rows of another."""
    if not target.is_static:
        for name in (*names, "joined", "resting"):
            own = getattr(source, name)
            setattr(target, name, tuple(own[slot] for slot in slots))
        target.taken_steps = source.taken_steps


def _put(state: Any, name: str, slot: int, value: Any) -> None:
    own = getattr(state, name)
    setattr(state, name, (*own[:slot], value, *own[slot + 1 :]))
