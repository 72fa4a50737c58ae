"""Masked diffusion: hidden positions are revealed for good, a few at a time (DiffuGPT and DiffuLLaMA, Dream, LLaDA)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..config import SamplingParams
from ..contracts import Canvas, Denoisable, TokenChoice
from ..samplers.purposes import ORDER, SAMPLE
from ..samplers.reveal import above_cutoff, current_block, order_scores, surest
from ..schedules.revealing import check_steps
from .masked_state import MaskedState, hidden_of, new_masked_state


class MaskedDenoiser:
    """Reveals batches of canvases with one model; keeps nothing between batches."""

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
    ) -> MaskedState:
        """Copy a batch of requests into buffers; see `new_masked_state` for what is refused."""
        return new_masked_state(canvases, params, mask_id, eos_ids, device, self.ops)

    def check(self, canvas: Canvas, params: SamplingParams, mask_id: int) -> None:
        """Raise what `begin` would for this request, without a tensor; any thread may ask."""
        hidden_of(0, canvas, mask_id)
        check_steps(params, canvas.answer_length)

    def step_(self, state: MaskedState) -> None:
        """Predict the positions that this step reads, reveal those its rule chooses, in place; rows that are done stay as they are.

        Where every reveal was drawn beforehand, only the positions it reveals are read: about N/T of N. Static: shapes follow the
        buffers and the plan's host integers, per-step numbers come from device tables, and no tensor is read on the host.
        """
        first, count, after = state.tables.at(state.row_steps)
        hidden = state.is_open & (state.answer == state.mask_id)
        candidates, order, rank = self._places(state, hidden)
        width = self._width(state)
        lanes = (first[:, None] + state.columns[:width]).clamp(max=state.columns.shape[0] - 1)
        choice = self._predict(state, order.gather(1, lanes), width)
        lane = rank - first[:, None]
        is_read = (lane >= 0) & (lane < count[:, None])
        lane = lane.clamp(0, width - 1)
        token = choice.token.gather(1, lane)
        confidence = choice.confidence.gather(1, lane)
        certainty = None if choice.certainty is None else choice.certainty.gather(1, lane)
        reveals = self._reveals(state, hidden, candidates & is_read, is_read, after, token, confidence, certainty)
        self._write(state, hidden & is_read, reveals, token, confidence)
        state.taken_steps += 1

    def _places(self, state: MaskedState, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (positions that may be revealed `[B, R]`, the order columns are read in, its inverse)."""
        if "budget" not in state.rules.used:
            return hidden, state.order, state.rank
        candidates = current_block(state.rules, hidden)
        is_fixed = (state.rules.is_predrawn | state.rules.is_cutoff)[:, None]
        live = (~candidates).to(torch.int32).argsort(dim=1, stable=True)
        order = torch.where(is_fixed, state.order, live)
        rank = torch.empty_like(order).scatter_(1, order, state.columns.expand_as(order))
        return torch.where(is_fixed, hidden, candidates), order, rank

    def _width(self, state: MaskedState) -> int:
        """Return how many lanes this step reads: the most any row of the plan needs now, all of the bucket's in a captured step."""
        if state.is_static:
            return state.lanes
        return max(1, *self._reads_now(state))

    def _reads_now(self, state: MaskedState) -> list[int]:
        """Return how many lanes each row reads at its own step."""
        since = zip(state.reads, state.joined, strict=True)
        return [own[min(state.taken_steps - joined, len(own) - 1)] for own, joined in since]

    def _predict(self, state: MaskedState, columns: Tensor, width: int) -> TokenChoice:
        """Predict the answer columns `[B, width]`; lanes beyond a row's count mean nothing."""
        # A lane beyond a row's answer reads its last position, so that no index leaves the canvas.
        positions = state.answer_start[:, None] + torch.minimum(columns, state.answer_length[:, None] - 1)
        lengths: Any = state.answer_start + state.answer_length
        unread = unguided = counts = None
        if not state.is_static:
            lengths, unread = state.lengths, state.resting
            unguided = tuple(rests or not guided for rests, guided in zip(state.resting, state.guided, strict=True))
            counts = tuple(0 if rests else read for rests, read in zip(state.resting, self._reads_now(state), strict=True))
        rows = self.model.read_rows(state.ids, positions, lengths, unread)
        unconditional = None
        if any(state.guided):
            without_prompt = torch.where(state.is_prompt, state.mask_id, state.ids)
            unconditional = self.model.read_rows(without_prompt, positions, lengths, unguided)
        # One number per position, so that a position draws the same wherever in a batch it is read.
        uniforms = self.ops.uniform(state.seeds, state.columns, state.row_steps, SAMPLE).gather(1, columns)
        asked = {"certainty": state.rules.certainty} if "certainty" in state.rules.used else {}
        guided = None if state.is_static else state.guided
        return self.model.choose(rows, state.rule, uniforms, unconditional, counts, guided, **asked)

    def _reveals(
        self,
        state: MaskedState,
        hidden: Tensor,
        candidates: Tensor,
        is_read: Tensor,
        after: Tensor,
        token: Tensor,
        confidence: Tensor,
        certainty: Tensor | None,
    ) -> Tensor:
        """Return `[B, R]` bool: the positions that take their tokens now."""
        rules = state.rules
        reveals = hidden & is_read & rules.is_predrawn[:, None]
        if "cutoff" in rules.used:
            chosen = above_cutoff(confidence, state.is_open, hidden, after)
            reveals = torch.where(rules.is_cutoff[:, None], chosen, reveals)
        if "budget" in rules.used:
            draws = None
            if rules.used & {"draw", "noise"}:
                draws = self.ops.uniform(state.seeds, state.columns, state.row_steps, ORDER)
            is_eos = (token[..., None] == state.eos_ids).any(2)
            score = order_scores(rules, confidence, certainty, is_eos, draws)
            chosen = surest(rules, score, candidates, hidden.sum(1) - after)
            reveals = torch.where((rules.is_predrawn | rules.is_cutoff)[:, None], reveals, chosen)
        return reveals

    def _write(self, state: MaskedState, is_predicted: Tensor, reveals: Tensor, token: Tensor, confidence: Tensor) -> None:
        is_active = ~state.done
        active = is_active[:, None]
        after = torch.where(reveals, token, state.answer)
        _put(state.before, state.answer, active)
        _put(state.predicted, torch.where(is_predicted, token, state.answer), active)
        _put(state.confidence, confidence, active & is_predicted)
        for history in (state.first_set, state.last_changed):
            _put(history, state.row_steps[:, None], active & reveals)
        _put(state.answer, after, active)
        offset = torch.arange(state.ids.shape[1], device=state.ids.device) - state.answer_start[:, None]
        is_answer = (offset >= 0) & (offset < state.answer_length[:, None])
        _put(state.ids, state.answer.gather(1, offset.clamp(0, state.answer.shape[1] - 1)), is_answer & active)
        is_complete = ~(state.is_open & (state.answer == state.mask_id)).any(1)
        is_last = state.row_steps >= state.steps - 1
        state.acted.copy_(is_active)
        state.nfe.add_(state.evaluations * is_active)
        state.row_steps.add_(is_active)
        stops = is_complete & state.early_stop
        state.stopped_early.logical_or_(is_active & stops & ~is_last)
        state.done.logical_or_(is_last | stops)
        state.step.add_(1)


def _put(buffer: Tensor, values: Tensor, where: Tensor) -> None:
    buffer.copy_(torch.where(where, values, buffer))
