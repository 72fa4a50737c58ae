"""LAD decoding: predict the whole answer, put noise back, repeat (LAD paper, section 2.5, and its authors' later samplers)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..config import SamplingParams
from ..contracts import Canvas, Denoisable, Lowered
from ..samplers.penalty import penalties
from ..samplers.purposes import SAMPLE
from ..schedules.masking import check_steps
from .lad_state import LadState, check_canvas, new_state


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

    def check(self, canvas: Canvas, params: SamplingParams, mask_id: int) -> None:
        """Raise what `begin` would for this request, without a tensor; any thread may ask."""
        check_canvas(0, canvas)
        check_steps(params, canvas.answer_length)

    def step_(self, state: LadState) -> None:
        """Predict every open position once and update `state` in place; rows that are done stay as they are.

        Static: shapes follow the buffers and the plan's host integers, per-step numbers come from device tables, and no tensor is
        read on the host.
        """
        token, confidence = self._predict(state, state.tables.visible_at(state.row_steps))
        self.ops.update(state, state.rules, state.tables, token, confidence, mask_id=state.mask_id, used=state.rules.used)
        state.taken_steps += 1

    def _predict(self, state: LadState, visible: Tensor) -> tuple[Tensor, Tensor]:
        """Return (token, confidence) `[B, R]` for every answer column on the canvas; what stands in the others means nothing."""
        positions = state.answer_start[:, None] + torch.minimum(state.columns, visible[:, None] - 1)
        lengths, unread, unguided, counts = self._read_by(state, visible)
        rows = self.model.read_rows(state.ids, positions, lengths, unread)
        unconditional = None
        if any(state.guided):
            without_prompt = torch.where(state.is_prompt, state.mask_id, state.ids)
            unconditional = self.model.read_rows(without_prompt, positions, lengths, unguided)
        uniforms = self.ops.uniform(state.seeds, state.columns, state.row_steps, SAMPLE)
        guided = None if state.is_static else state.guided
        lowered = self._lowered(state) if any(state.penalised) else None
        choice = self.model.choose(rows, state.rule, uniforms, unconditional, counts, guided, lowered=lowered)
        return choice.token, choice.confidence

    def _lowered(self, state: LadState) -> Lowered:
        """Return what the answers hold so far and by how much it is penalised."""
        rules = state.rules
        by = penalties(state.answer, state.is_open, state.mask_id, state.eos_ids, rules.frequency_penalty, rules.presence_penalty)
        return Lowered(state.answer, by, None if state.is_static else state.penalised)

    def _read_by(self, state: LadState, visible: Tensor) -> tuple[Any, ...]:
        """Return (lengths, rows nobody reads, the same without guidance, positions read): device lengths alone in a captured step."""
        if state.is_static:
            return state.answer_start + visible, None, None, None
        shown = [own[min(state.taken_steps - since, len(own) - 1)] for own, since in zip(state.visible, state.joined, strict=True)]
        lengths = tuple(start + count for start, count in zip(state.starts, shown, strict=True))
        unguided = tuple(rests or not guided for rests, guided in zip(state.resting, state.guided, strict=True))
        counts = tuple(0 if rests else count for rests, count in zip(state.resting, shown, strict=True))
        return lengths, state.resting, unguided, counts
