"""Plays a recorded refinement again, at its own speed or faster."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterator

from ..contracts import StepEvent
from .live import CanvasPainter
from .trace import TracedSequence

# A step longer than this in the recording (a cold first step) is not worth waiting for again.
LONGEST_PAUSE_S = 1.5


def painter_of(sequences: list[TracedSequence]) -> CanvasPainter:
    """Return a painter that knows the pieces, mask and end ids the trace recorded."""
    pieces: dict[int, str] = {}
    for sequence in sequences:
        pieces.update(sequence.pieces)
    header = sequences[0].header
    return CanvasPainter(lambda token: pieces.get(token, f"<{token}>"), header["mask_id"], header["eos_ids"])


def played(sequences: list[TracedSequence], speed: float, sleep: Callable[[float], None] = time.sleep) -> Iterator[StepEvent]:
    """Yield the events of all sequences in the order of their time, pausing between them as recorded, divided by `speed`."""
    clock_ms = 0.0
    for event in heapq.merge(*(sequence.events for sequence in sequences), key=lambda event: event.elapsed_ms):
        pause_s = (event.elapsed_ms - clock_ms) / 1e3 / speed
        if pause_s > 0:
            sleep(min(pause_s, LONGEST_PAUSE_S))
        clock_ms = event.elapsed_ms
        yield event
