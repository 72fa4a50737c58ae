"""LAD decoding: predict the whole answer, put noise back, repeat (LAD paper, section 2.5, and its authors' later samplers)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..config import SamplingParams
from ..contracts import Canvas, Denoisable
from ..samplers.purposes import SAMPLE
from ..samplers.remask import StepNumbers, remask, transferred
from .lad_state import LadState, new_state

# The paper and the Space stop when three predictions in a row are equal.
EQUAL_PREDICTIONS = 3


class LadDenoiser:
    """Refines batches of canvases with one model; keeps nothing between batches."""

    def __init__(self, model: Denoisable, ops: Any) -> None:
        self.model, self.ops = model, ops

    def begin(
        self,
        canvases: Sequence[Canvas],
        params: Sequence[SamplingParams],
        *,
        mask_id: int,
        eos_ids: tuple[int, ...],
        device: torch.device | str,
    ) -> LadState:
        """Copy a batch of requests into buffers; see `new_state` for what is refused."""
        return new_state(canvases, params, mask_id, eos_ids, device, self.ops)

    def step_(self, state: LadState) -> None:
        """Predict every open position once and update `state` in place; rows that are done stay as they are.

        Static: shapes follow the buffers and the plan's host integers, per-step numbers come from device tables, and no tensor is
        read on the host.
        """
        now = state.tables.at(state.step)
        in_window = state.columns < now.visible[:, None]
        is_open = state.is_open & in_window
        is_active = ~state.done
        token, confidence = self._predict(state, now)

        is_writable = is_open
        if "transfer" in state.rules.used:
            is_writable = is_writable & ~((state.answer != state.mask_id) & state.rules.transfers[:, None])
        if "retain" in state.rules.used:
            is_writable = is_writable & ~(state.retained & state.rules.locks[:, None])
        predicted = torch.where(is_writable, token, state.answer)
        confidence = torch.where(is_writable, confidence, state.confidence)
        is_same = (predicted == state.predicted).all(1) & ~now.grows
        repeats = torch.where(is_same, state.repeats + 1, 1)
        is_eos = (predicted[..., None] == state.eos_ids).any(2) & in_window
        draws = (state.seeds, state.step, self.ops)
        kept = (is_open, state.was_shown, state.retained)
        noised, retained = remask(state.rules, now, predicted, confidence, is_eos, *kept, state.mask_id, *draws)

        is_last = state.step >= state.steps - 1
        stops = state.early_stop & (repeats >= EQUAL_PREDICTIONS)
        after = torch.where((is_last | stops)[:, None], predicted, noised)
        if "transfer" in state.rules.used:
            commits = transferred(state.rules, now, confidence, is_eos, is_writable, *draws)
            committed = torch.where(commits, predicted, state.answer)
            is_complete = ~((committed == state.mask_id) & state.is_open).any(1)
            after = torch.where(state.rules.transfers[:, None], committed, after)
            stops = torch.where(state.rules.transfers, state.early_stop & is_complete, stops)

        state.before.copy_(state.answer)
        _write(state.predicted, predicted, is_active[:, None])
        _write(state.confidence, confidence, is_active[:, None])
        _write(state.retained, retained, is_active[:, None])
        _write(state.repeats, repeats, is_active)
        self._record(state, after, is_open & is_active[:, None])
        _write(state.answer, after, is_active[:, None])
        state.acted.copy_(is_active)
        state.nfe.add_(state.evaluations * is_active)
        state.row_steps.add_(is_active)
        state.stopped_early.logical_or_(is_active & stops & ~is_last)
        state.done.logical_or_(stops | is_last)
        _write(state.ids, state.answer.gather(1, state.column), state.is_answer)
        state.step.add_(1)
        state.taken_steps += 1

    def _predict(self, state: LadState, now: StepNumbers) -> tuple[Tensor, Tensor]:
        """Return (token, confidence) `[B, R]` for every answer column on the canvas; what stands in the others means nothing."""
        positions = state.answer_start[:, None] + torch.minimum(state.columns, now.visible[:, None] - 1)
        lengths, unread, unguided, counts = self._read_by(state, now)
        rows = self.model.read_rows(state.ids, positions, lengths, unread)
        unconditional = None
        if any(state.guided):
            without_prompt = torch.where(state.is_prompt, state.mask_id, state.ids)
            unconditional = self.model.read_rows(without_prompt, positions, lengths, unguided)
        uniforms = self.ops.uniform(state.seeds, state.columns, state.step, SAMPLE)
        choice = self.model.choose(rows, state.rule, uniforms, unconditional, counts)
        return choice.token, choice.confidence

    def _read_by(self, state: LadState, now: StepNumbers) -> tuple[Any, ...]:
        """Return (lengths, rows nobody reads, the same without guidance, positions read): device lengths alone in a captured step."""
        if state.is_static:
            return state.answer_start + now.visible, None, None, None
        at = min(state.taken_steps, state.max_steps - 1)
        unguided = tuple(rests or not guided for rests, guided in zip(state.resting, state.guided, strict=True))
        counts = tuple(0 if rests else visible for rests, visible in zip(state.resting, state.visible[at], strict=True))
        return state.lengths[at], state.resting, unguided, counts

    def _record(self, state: LadState, after: Tensor, is_open: Tensor) -> None:
        """Note where the state now shows a token, and where another one than it showed last."""
        shows = is_open & (after != state.mask_id)
        _write(state.first_set, state.step, shows & (state.first_set < 0))
        _write(state.last_changed, state.step, shows & (after != state.shown))
        _write(state.shown, after, shows)
        state.was_shown.logical_or_(shows)


def _write(buffer: Tensor, values: Tensor, where: Tensor) -> None:
    buffer.copy_(torch.where(where, values, buffer))
