"""Simplex diffusion (TESS 2): predict every open position from its mean embedding, draw tokens, noise them again, repeat."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..config import SamplingParams
from ..contracts import Canvas, Renoise, SimplexDenoisable, SoftInput
from ..errors import ConfigError
from ..samplers.purposes import SAMPLE, SIMPLEX_NOISE
from .simplex_state import SimplexState, check_canvas, new_simplex_state

# (row of the batch, its forward pass) -> `[R, V]` standard normal numbers
NoiseSource = Callable[[int, int], Tensor]


class SimplexDenoiser:
    """Refines batches of canvases with one model; keeps nothing between batches.

    reward: steers logits (`model.reward.RewardModel`), None without one. noise: supplies the noise of every pass instead of the
    generator (the exact mode, for comparisons); it is asked on the host, so such a step cannot be captured.
    """

    def __init__(self, model: SimplexDenoisable, ops: Any, reward: Any = None, noise: NoiseSource | None = None) -> None:
        self.model, self.ops, self.reward, self._noise = model, ops, reward, noise

    def begin(
        self,
        canvases: Sequence[Canvas],
        params: Sequence[SamplingParams],
        *,
        mask_id: int,
        eos_ids: tuple[int, ...],
        device: torch.device | str,
    ) -> SimplexState:
        """Copy a batch of requests into buffers; see `new_simplex_state` for what is refused.

        Raises:
            ConfigError: a request asks for reward guidance, and there is no reward model.
        """
        for one in params:
            self._check_reward(one)
        return new_simplex_state(canvases, params, mask_id, eos_ids, device, self.model.blank, self.model.transformer.facts.vocab_size)

    def check(self, canvas: Canvas, params: SamplingParams, mask_id: int) -> None:
        """Raise what `begin` would for this request, without a tensor; any thread may ask."""
        self._check_reward(params)
        check_canvas(0, canvas, mask_id)

    def prime_(self, state: SimplexState) -> None:
        """Write the mean embeddings that the first pass reads; what a captured decode does once, before its first replay."""
        pass_ = torch.zeros_like(state.row_steps)
        alone = torch.full_like(state.answer, -1)
        signal, sigma = torch.zeros_like(state.tables.signal[0]), torch.ones_like(state.tables.sigma[0])
        if state.noise is not None and self._noise is None:
            B, R, V = state.noise.shape
            seeds, steps = (column.repeat_interleave(R, output_size=B * R) for column in (state.seeds, pass_))
            drawn = self.ops.gaussian_noise(seeds, state.columns.repeat(B), steps, SIMPLEX_NOISE, V)
            state.noise.copy_(drawn.view(B, R, V))
        renoise = Renoise(alone, signal, sigma, state.seeds, pass_, state.columns, SIMPLEX_NOISE, *self._kept_noise(state, 0))
        state.soft.copy_(self.model.begin(renoise, None if state.is_static else state.counts))
        state.is_primed = True

    def step_(self, state: SimplexState) -> None:
        """Make one forward pass and update `state` in place; rows that are done stay as they are.

        Static: shapes follow the buffers (and host integers that are known beforehand, where not `is_static`), per-pass numbers come
        from device tables, and no tensor is read on the host.
        """
        if not (state.is_primed or state.is_static):
            self.prime_(state)
        signal, sigma, time = state.tables.at(state.row_steps)
        next_signal, next_sigma, _ = state.tables.at(state.row_steps + 1)
        lengths, unread, counts = self._read_by(state)
        positions = state.answer_start[:, None] + torch.minimum(state.columns, state.answer_length[:, None] - 1)
        rows = self.model.read_rows(
            state.ids, SoftInput(state.soft, state.column, state.is_soft, time), positions, lengths, unread
        )  # fmt: skip
        is_last = state.row_steps >= state.steps - 1
        # The answer is the last logits' most probable tokens; every other pass draws.
        rule = dataclasses.replace(state.rule, temperature=torch.where(is_last, 0.0, state.rule.temperature))
        uniforms = self.ops.uniform(state.seeds, state.columns, state.row_steps, SAMPLE)
        noise, keeps = self._kept_noise(state, state.taken_steps + 1)
        turn = None
        if state.noise is not None and self._noise is None:
            # The first simplex is noise alone, whatever the schedule says of its level.
            is_first = state.row_steps == 0
            turn = (signal, sigma, torch.where(is_first, 0.0, signal), torch.where(is_first, 1.0, sigma))
        renoise = Renoise(
            state.answer, next_signal, next_sigma, state.seeds, state.row_steps + 1, state.columns, SIMPLEX_NOISE, noise, keeps, turn
        )
        choice, soft = self.model.choose(rows, positions, rule, uniforms, renoise, counts, self._guide(state))
        self._accept(state, choice.token, choice.confidence, soft)

    def _check_reward(self, params: SamplingParams) -> None:
        if self.reward is None and params.reward_scale:
            raise ConfigError(
                "reward_scale is given, but the engine has no reward model. Load it with one (--reward-model), or leave it out."
            )

    def _accept(self, state: SimplexState, token: Tensor, confidence: Tensor, soft: Tensor) -> None:
        is_active = ~state.done
        at = state.is_open & is_active[:, None]
        after = torch.where(at, token, state.answer)
        _write(state.first_set, state.row_steps[:, None], at & (state.first_set < 0))
        _write(state.last_changed, state.row_steps[:, None], at & (after != state.answer))
        _write(state.before, state.answer, is_active[:, None])
        _write(state.answer, after, at)
        _write(state.predicted, after, is_active[:, None])
        _write(state.confidence, confidence, at)
        state.ids.copy_(torch.where(state.is_soft, state.answer.gather(1, state.column), state.ids))
        _write(state.soft, soft, at[..., None])
        state.acted.copy_(is_active)
        state.nfe.add_(is_active)
        state.row_steps.add_(is_active)
        state.done.logical_or_(state.row_steps >= state.steps)
        state.step.add_(1)
        state.taken_steps += 1

    def _read_by(self, state: SimplexState) -> tuple[Any, ...]:
        """Return (lengths, rows nobody reads, answer positions read): device lengths alone in a captured step."""
        if state.is_static:
            return state.answer_start + state.answer_length, None, None
        counts = tuple(0 if rests else count for rests, count in zip(state.resting, state.counts, strict=True))
        return state.lengths, state.resting, counts

    def _kept_noise(self, state: SimplexState, step: int) -> tuple[Tensor | None, tuple[bool, ...]]:
        """Return noise that does not come fresh from the generator, and which sequences read it."""
        if self._noise is None:
            return state.noise, tuple(one.transition == "ddim" for one in state.params)
        return torch.stack([self._noise(b, step) for b in range(len(state.params))]), (True,) * len(state.params)

    def _guide(self, state: SimplexState) -> Callable[[int, Tensor], Tensor] | None:
        if self.reward is None or not any(one.reward_scale for one in state.params):
            return None

        def guide(b: int, logits: Tensor) -> Tensor:
            params = state.params[b]
            if not params.reward_scale:
                return logits
            soft = SoftInput(state.soft, state.column[b], state.is_soft[b], state.tables.time[0])
            end = state.answer_start[b] + state.answer_length[b]
            return self.reward.steer(logits, state.ids[b], soft, state.answer_start[b], end, state.eos_ids, params)

        return guide


def _write(buffer: Tensor, values: Tensor, where: Tensor) -> None:
    buffer.copy_(torch.where(where, values, buffer))
