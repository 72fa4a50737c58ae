"""The buffers of one batch of masked-diffusion decodes, and how a batch of requests is copied into them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import SamplingParams
from ..contracts import Canvas, TokenRule
from ..errors import RequestError
from ..samplers.purposes import REVEAL
from ..samplers.reveal import RevealRules, reveal_rules
from ..samplers.token_rule import build_token_rule
from ..schedules.revealing import RevealPlan, plan_reveal

# The columns of RevealTables.whole, fields of RevealPlan.
WHOLE = ("first", "count", "after")


@dataclass(frozen=True)
class RevealTables:
    """Every plan of the batch on the device, `[S, P, B]` int64 (P columns, WHOLE)."""

    whole: Tensor

    def at(self, step: Tensor) -> tuple[Tensor, ...]:
        """Read the columns `[B]` of each row at its own step `[B]`; a step beyond the last reads the last."""
        row = step.clamp(max=self.whole.shape[0] - 1)[None, None]
        return tuple(self.whole.gather(0, row.expand(1, self.whole.shape[1], -1))[0].unbind(0))


@dataclass
class MaskedState:
    """One batch being revealed; row b is one request, column r is answer position r. Tensors are written in place, never replaced.

    On the host, fixed: mask_id, guided (rows with cfg_scale), max_steps, lanes (answer rows read per sequence and step at most),
    reads (of each row, how many of them it reads per step), lengths. rules, rule, tables: device tables. taken_steps counts the calls,
    joined names the one at which each row began; resting names rows a driver has seen done. is_static: the buffers belong to a bucket
    (see `masked_bucket`), so a step reads no host number.
    Per canvas position `[B, T]`: ids; is_prompt.
    Per answer position `[B, R]`: is_open (to be revealed by this decode), answer (MASK where hidden), before, predicted (this step's
    prediction, MASK where none was made), confidence of the token that stands there, first_set and last_changed (the step it was
    revealed at, -1 before); order, the columns in the order they are read, and rank, its inverse.
    Per row `[B]`: answer_start, answer_length, seeds, steps, early_stop, evaluations (forwards a step), done, acted, stopped_early, nfe,
    row_steps. columns `[R]`, eos_ids `[E]`, step `[]`, bounds `[2]` as in `lad_state.LadState`.
    """

    mask_id: int
    guided: tuple[bool, ...]
    max_steps: int
    lanes: int
    reads: tuple[tuple[int, ...], ...]
    lengths: tuple[int, ...]
    joined: tuple[int, ...]
    resting: tuple[bool, ...]
    rules: RevealRules
    rule: TokenRule
    tables: RevealTables
    ids: Tensor
    is_prompt: Tensor
    is_open: Tensor
    answer: Tensor
    before: Tensor
    predicted: Tensor
    confidence: Tensor
    first_set: Tensor
    last_changed: Tensor
    order: Tensor
    rank: Tensor
    answer_start: Tensor
    answer_length: Tensor
    seeds: Tensor
    steps: Tensor
    early_stop: Tensor
    evaluations: Tensor
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
    is_static: bool = False


def new_masked_state(
    canvases: Sequence[Canvas],
    params: Sequence[SamplingParams],
    mask_id: int,
    eos_ids: tuple[int, ...],
    device: torch.device | str,
    ops: Any,
) -> MaskedState:
    """Lay a batch out in fresh buffers, draw every reveal that can be drawn, and plan every step.

    A position is revealed where it is open and holds the mask; a drafted token stays.
    Raises:
        RequestError: a canvas has nothing hidden, or fewer steps than blocks.
    """
    if not canvases or len(canvases) != len(params):
        raise RequestError(f"begin: {len(canvases)} canvases with {len(params)} SamplingParams, expected as many of each, at least one.")
    B, T = len(canvases), max(canvas.length for canvas in canvases)
    R = max(canvas.answer_length for canvas in canvases)
    ids = np.full((B, T), mask_id, np.int64)
    is_open = np.zeros((B, R), bool)
    answer = np.full((B, R), mask_id, np.int64)
    for b, canvas in enumerate(canvases):
        ids[b, : canvas.length] = canvas.ids
        is_open[b, : canvas.answer_length] = hidden_of(b, canvas, mask_id)
        answer[b, : canvas.answer_length] = canvas.ids[canvas.answer_start :]
    start = np.array([canvas.answer_start for canvas in canvases])
    length = np.array([canvas.answer_length for canvas in canvases])

    def put(values: Any, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.as_tensor(np.asarray(values), device=device).to(dtype, copy=True)

    seeds, columns = put([one.seed for one in params]), torch.arange(R, device=device)
    draws = ops.uniform(seeds, columns, put(0), REVEAL).cpu().numpy()
    plans = [plan_reveal(one, is_open[b, : length[b]], draws[b, : length[b]]) for b, one in enumerate(params)]
    order = np.tile(np.arange(R), (B, 1))
    for b, plan in enumerate(plans):
        order[b, : length[b]] = plan.order
    whole = _tables(plans)
    reads = whole[:, WHOLE.index("count")]
    offset = np.arange(T)[None] - start[:, None]
    return MaskedState(
        mask_id=mask_id,
        guided=tuple(one.cfg_scale > 0 for one in params),
        max_steps=len(whole),
        lanes=max(1, int(reads.max())),
        reads=tuple(map(tuple, reads.T.tolist())),
        lengths=tuple((start + length).tolist()),
        joined=(0,) * B,
        resting=(False,) * B,
        rules=reveal_rules(params, device),
        rule=build_token_rule(params, mask_id, eos_ids, device),
        tables=RevealTables(put(whole)),
        ids=put(ids),
        is_prompt=put(offset < 0, torch.bool),
        is_open=put(is_open, torch.bool),
        answer=put(answer),
        before=put(answer),
        predicted=put(answer),
        confidence=put(~is_open, torch.float32),
        first_set=put(np.full((B, R), -1)),
        last_changed=put(np.full((B, R), -1)),
        order=put(order),
        rank=put(np.argsort(order, axis=1)),
        answer_start=put(start),
        answer_length=put(length),
        seeds=seeds,
        steps=put([len(plan.count) for plan in plans]),
        early_stop=put([one.early_stop for one in params], torch.bool),
        evaluations=put([2 if one.cfg_scale > 0 else 1 for one in params]),
        done=put([False] * B, torch.bool),
        acted=put([False] * B, torch.bool),
        stopped_early=put([False] * B, torch.bool),
        nfe=put([0] * B),
        row_steps=put([0] * B),
        columns=columns,
        eos_ids=put(list(eos_ids)),
        step=put(0),
        bounds=put([len(whole), 0]),
    )


def hidden_of(index: int, canvas: Canvas, mask_id: int) -> np.ndarray:
    """Return `[A]` bool, the answer positions to reveal; RequestError where there is none or the canvas does not hold together."""
    if canvas.is_open.shape != canvas.ids.shape or not 0 <= canvas.answer_start < canvas.length:
        raise RequestError(
            f"canvas {index}: ids {canvas.ids.shape}, is_open {canvas.is_open.shape}, answer_start {canvas.answer_start}, "
            "expected equal shapes and an answer that starts inside them."
        )
    if canvas.is_open[: canvas.answer_start].any():
        raise RequestError(f"canvas {index}: a prompt position is open, expected open positions inside the answer only.")
    hidden = (canvas.is_open & (canvas.ids == mask_id))[canvas.answer_start :]
    if not hidden.any():
        raise RequestError(
            f"canvas {index}: no position is hidden, expected at least one: masked decoding keeps every given token. "
            "Leave the draft out, or write gaps into it as --infill."
        )
    return hidden


def _tables(plans: Sequence[RevealPlan]) -> np.ndarray:
    """Return `[S, P, B]`; a plan that ends before the longest repeats its last numbers, when its row is done."""
    longest = max(len(plan.count) for plan in plans)
    rows = [[np.pad(getattr(plan, name), (0, longest - len(plan.count)), mode="edge") for name in WHOLE] for plan in plans]
    return np.ascontiguousarray(np.array(rows, np.int64).transpose(2, 1, 0))
