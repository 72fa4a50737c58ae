"""The buffers of one batch of simplex decodes, and how a batch of requests is copied into them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import SamplingParams
from ..contracts import Canvas, TokenRule
from ..errors import RequestError
from ..samplers.token_rule import build_token_rule
from ..schedules.gaussian import plan_simplex


@dataclass(frozen=True)
class SimplexTables:
    """The schedules of a batch on the device, each `[S, B]` fp32 by forward pass; see `schedules.gaussian.SimplexPlan`."""

    signal: Tensor
    sigma: Tensor
    time: Tensor

    def at(self, step: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (signal, sigma, time) `[B]` of each row's pass `step` `[B]`; a pass beyond the last is the last."""
        row = step.clamp(max=self.signal.shape[0] - 1)[None]
        return self.signal.gather(0, row)[0], self.sigma.gather(0, row)[0], self.time.gather(0, row)[0]


@dataclass
class SimplexState:
    """One batch being refined; row b is one request, column r is answer position r. Tensors are written in place, never replaced.

    The state proper is tokens (the last pass's, in `answer`), seeds, and `soft` `[B, R, D]`, the mean embedding of tokens renoised and
    of the last logits: neither the noise nor the logits are kept. `noise` `[B, R, V]` only exists where the transition is ddim.
    On the host, fixed: mask_id (what an untouched position shows), max_steps, lengths and counts (canvas and answer positions of each
    row), params. taken_steps counts the calls; resting names rows a driver has seen done; is_primed: soft holds the first noise.
    Per canvas position `[B, T]`: ids, fixed but for what open positions show; column, is_soft (see `contracts.SoftInput`).
    Per answer position `[B, R]`: is_open; answer, the tokens of the last pass (of the last of all: its most probable); before, those of
    the one before; predicted; confidence; first_set and last_changed, the pass, -1 where never.
    Per row `[B]`: answer_start, answer_length, seeds, steps, done, acted, stopped_early (never), nfe, row_steps. columns `[R]`,
    step `[]`, bounds `[2]`: as in LadState. is_static: the buffers belong to a bucket, and a step reads no host number of the request.
    """

    mask_id: int
    max_steps: int
    lengths: tuple[int, ...]
    counts: tuple[int, ...]
    params: tuple[SamplingParams, ...]
    resting: tuple[bool, ...]
    rule: TokenRule
    tables: SimplexTables
    soft: Tensor
    noise: Tensor | None
    ids: Tensor
    column: Tensor
    is_soft: Tensor
    is_open: Tensor
    answer: Tensor
    before: Tensor
    predicted: Tensor
    confidence: Tensor
    first_set: Tensor
    last_changed: Tensor
    answer_start: Tensor
    answer_length: Tensor
    seeds: Tensor
    steps: Tensor
    done: Tensor
    acted: Tensor
    stopped_early: Tensor
    nfe: Tensor
    row_steps: Tensor
    columns: Tensor
    eos_ids: Tensor
    step: Tensor
    bounds: Tensor
    taken_steps: int = 0
    is_primed: bool = False
    is_static: bool = False


def new_simplex_state(
    canvases: Sequence[Canvas],
    params: Sequence[SamplingParams],
    mask_id: int,
    eos_ids: tuple[int, ...],
    device: torch.device | str,
    blank: Any,
    vocabulary: int,
) -> SimplexState:
    """Lay a batch out in fresh buffers and plan every pass.

    Args:
        blank: makes `soft` from (B, R, device). vocabulary: V, for the noise that ddim keeps.
    Raises:
        RequestError: a canvas has nothing to refine, or brings a draft, which nothing would read.
    """
    if not canvases or len(canvases) != len(params):
        raise RequestError(f"begin: {len(canvases)} canvases with {len(params)} SamplingParams, expected as many of each, at least one.")
    for index, canvas in enumerate(canvases):
        check_canvas(index, canvas, mask_id)
    B, T = len(canvases), max(canvas.length for canvas in canvases)
    R = max(canvas.answer_length for canvas in canvases)
    ids = np.full((B, T), mask_id, np.int64)
    answer = np.full((B, R), mask_id, np.int64)
    column, is_soft, is_open = np.zeros((B, T), np.int64), np.zeros((B, T), bool), np.zeros((B, R), bool)
    for b, canvas in enumerate(canvases):
        ids[b, : canvas.length] = canvas.ids
        is_soft[b, : canvas.length] = canvas.is_open
        answer[b, : canvas.answer_length] = canvas.ids[canvas.answer_start :]
        is_open[b, : canvas.answer_length] = canvas.is_open[canvas.answer_start :]
        column[b] = np.clip(np.arange(T) - canvas.answer_start, 0, R - 1)
    max_steps = max(one.steps for one in params)
    plans = [plan_simplex(one.steps) for one in params]

    def put(values: Any, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.as_tensor(np.asarray(values), device=device).to(dtype, copy=True)

    def table(name: str) -> Tensor:
        rows = [np.pad(getattr(plan, name), (0, max_steps - len(getattr(plan, name))), mode="edge") for plan in plans]
        return put(np.stack(rows, 1), torch.float32)

    zeros, never = np.zeros((B, R)), np.full((B, R), -1)
    has_ddim = any(one.transition == "ddim" for one in params)
    return SimplexState(
        mask_id=mask_id,
        max_steps=max_steps,
        lengths=tuple(canvas.length for canvas in canvases),
        counts=tuple(canvas.answer_length for canvas in canvases),
        params=tuple(params),
        resting=(False,) * B,
        # Every token of the vocabulary is a corner of the simplex: none stands for a hidden position.
        rule=build_token_rule([dataclasses.replace(one, top_k=0) for one in params], None, eos_ids, device),
        tables=SimplexTables(table("signal"), table("sigma"), table("time")),
        soft=blank(B, R, device),
        noise=torch.zeros(B, R, vocabulary, dtype=torch.float32, device=device) if has_ddim else None,
        ids=put(ids),
        column=put(column),
        is_soft=put(is_soft, torch.bool),
        is_open=put(is_open, torch.bool),
        answer=put(answer),
        before=put(answer),
        predicted=put(never),
        confidence=put(zeros, torch.float32) + 1,
        first_set=put(never),
        last_changed=put(never),
        answer_start=put([canvas.answer_start for canvas in canvases]),
        answer_length=put([canvas.answer_length for canvas in canvases]),
        seeds=put([one.seed for one in params]),
        steps=put([one.steps for one in params]),
        done=put(np.zeros(B), torch.bool),
        acted=put(np.zeros(B), torch.bool),
        stopped_early=put(np.zeros(B), torch.bool),
        nfe=put(np.zeros(B)),
        row_steps=put(np.zeros(B)),
        columns=torch.arange(R, device=device),
        eos_ids=put(list(eos_ids)),
        step=put(0),
        bounds=put([max_steps, 0]),
    )


def check_canvas(index: int, canvas: Canvas, mask_id: int) -> None:
    """Raise RequestError where a canvas has nothing to refine or brings a draft; index names it."""
    if not canvas.is_open.any():
        raise RequestError(f"prompt {index}: the canvas has no open position, expected at least one. Raise max_new_tokens.")
    if (canvas.ids[canvas.is_open] != mask_id).any():
        raise RequestError(
            f"prompt {index}: it brings a draft, expected none: a simplex decode begins with noise alone. Leave the draft out."
        )
