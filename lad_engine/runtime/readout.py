"""Host copies of a refinement's buffers: one event per row and step, one outcome per row at the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ..contracts import StepEvent

# The buffers a readout needs beside the step counter, the flags first: a captured bucket copies them to the host together.
FRAME = (
    *("done", "step", "acted", "stopped_early", "answer_length", "steps", "nfe", "row_steps"),
    *("answer", "before", "predicted", "confidence", "is_open", "first_set", "last_changed"),
)


class Refinement(Protocol):
    """The buffers a readout needs; `denoisers.lad_state.LadState` says what each holds."""

    mask_id: int
    answer: Tensor
    before: Tensor
    predicted: Tensor
    confidence: Tensor
    is_open: Tensor
    first_set: Tensor
    last_changed: Tensor
    answer_length: Tensor
    steps: Tensor
    acted: Tensor
    done: Tensor
    stopped_early: Tensor
    nfe: Tensor
    row_steps: Tensor


@dataclass(frozen=True)
class Outcome:
    """How one row ended, answer region only; step_map holds (first set, last changed) per position, -1 where never."""

    token_ids: tuple[int, ...]
    confidences: tuple[float, ...]
    step_map: tuple[tuple[int, int], ...]
    nfe: int
    steps: int
    stopped_early: bool


def read_event(state: Refinement, index: int, step: int, elapsed_ms: float) -> StepEvent | None:
    """Return what row `index` looks like after `step`, without text; None where the row was done before it."""
    if not bool(state.acted[index]):
        return None
    length = int(state.answer_length[index])
    now, then, predicted, confidences, is_open = (
        buffer[index, :length].tolist() for buffer in (state.answer, state.before, state.predicted, state.confidence, state.is_open)
    )
    return StepEvent(
        index=index,
        step=step,
        steps=int(state.steps[index]),
        token_ids=tuple(now),
        predicted_ids=tuple(predicted),
        confidences=tuple(confidences),
        status=tuple(_status(*cell, state.mask_id) for cell in zip(now, then, is_open, strict=True)),
        is_last=bool(state.done[index]),
        elapsed_ms=elapsed_ms,
    )


def read_outcome(state: Refinement, index: int) -> Outcome:
    """Return the final tokens and history of row `index`."""
    length = int(state.answer_length[index])
    first, last = (buffer[index, :length].tolist() for buffer in (state.first_set, state.last_changed))
    return Outcome(
        token_ids=tuple(state.answer[index, :length].tolist()),
        confidences=tuple(state.confidence[index, :length].tolist()),
        step_map=tuple(zip(first, last, strict=True)),
        nfe=int(state.nfe[index]),
        steps=int(state.row_steps[index]),
        stopped_early=bool(state.stopped_early[index]),
    )


def _status(now: int, then: int, is_open: bool, mask_id: int) -> str:
    if not is_open:
        return "fixed"
    if now == mask_id:
        return "masked"
    if then == mask_id:
        return "new"
    return "settled" if now == then else "changed"
