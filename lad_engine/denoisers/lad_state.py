"""The buffers of one batch of LAD decodes, and how a batch of requests is copied into them."""

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
from ..samplers.purposes import START
from ..samplers.row_rules import RowRules, row_rules
from ..samplers.token_rule import build_token_rule
from ..schedules.masking import Plan, plan_request

# The columns of StepTables.whole, fields of Plan, in the order in which the op `update` reads them.
WHOLE = ("visible", "grows", "count", "keep", "clusters", "cluster_size", "transfer", "block_start", "block_end")


@dataclass(frozen=True)
class StepTables:
    """Every plan of the batch on the device: whole numbers `[S, P, B]` int64 (P columns, WHOLE) and probability `[S, B]`."""

    whole: Tensor
    probability: Tensor

    def visible_at(self, step: Tensor) -> Tensor:
        """Read each row's answer positions on the canvas `[B]` at its own step `[B]`; a step beyond the last reads the last."""
        return self.whole[:, WHOLE.index("visible")].gather(0, step.clamp(max=self.whole.shape[0] - 1)[None])[0]


@dataclass
class LadState:
    """One batch being refined; row b is one request, column r is answer position r. Tensors are written in place, never replaced.

    On the host, fixed: mask_id, guided (rows with cfg_scale), penalised (rows with a penalty), max_steps, visible (of each row, its answer
    positions on the canvas per step) and starts (the canvas positions before them). rules, rule, tables: device tables of the batch.
    taken_steps counts the calls, joined names the one at which each row began; resting names rows a driver has seen done, which then cost
    nothing (a driver that never reads the flags leaves it: the tokens are the same).
    Per canvas position `[B, T]`: ids; is_prompt.
    Per answer position `[B, R]`: is_open (fixed for the decode); answer, the state (MASK where open and re-noised); before, the state
    ahead of the last step; predicted, the last prediction before re-noising; confidence of the token predicted last; shown, the
    last token other than MASK; was_shown, retained flags; first_set, last_changed steps, -1 where never.
    Per row `[B]`: answer_start, answer_length, seeds, steps, early_stop, evaluations (forwards a step), done, acted (took part in the
    last step), stopped_early, repeats (equal predictions in a row), nfe, row_steps. columns `[R]`, eos_ids `[E]`, step `[]`.
    bounds `[2]`: the steps a single-graph loop takes at most, and the number of live rows at which it leaves (0: when all are done).
    is_static: the buffers belong to a bucket (see `lad_bucket`), so a step reads no host number of this request: whole shapes, device
    lengths, every row. Its host fields are then the bucket's, and rows beyond the batch are done from the start.
    """

    mask_id: int
    guided: tuple[bool, ...]
    penalised: tuple[bool, ...]
    max_steps: int
    visible: tuple[tuple[int, ...], ...]
    starts: tuple[int, ...]
    joined: tuple[int, ...]
    resting: tuple[bool, ...]
    rules: RowRules
    rule: TokenRule
    tables: StepTables
    ids: Tensor
    is_prompt: Tensor
    is_open: Tensor
    answer: Tensor
    before: Tensor
    predicted: Tensor
    confidence: Tensor
    shown: Tensor
    was_shown: Tensor
    retained: Tensor
    first_set: Tensor
    last_changed: Tensor
    answer_start: Tensor
    answer_length: Tensor
    seeds: Tensor
    steps: Tensor
    early_stop: Tensor
    evaluations: Tensor
    done: Tensor
    acted: Tensor
    stopped_early: Tensor
    repeats: Tensor
    nfe: Tensor
    row_steps: Tensor
    columns: Tensor
    eos_ids: Tensor
    step: Tensor
    bounds: Tensor
    taken_steps: int = 0
    is_static: bool = False


def new_state(
    canvases: Sequence[Canvas],
    params: Sequence[SamplingParams],
    mask_id: int,
    eos_ids: tuple[int, ...],
    device: torch.device | str,
    ops: Any,
) -> LadState:
    """Lay a batch out in fresh buffers, put the first noise on drafts, and plan every step.

    Raises:
        RequestError: a canvas has nothing to refine, or its steps cannot fill it.
        ConfigError: a sampling parameter does not fit.
    """
    if not canvases or len(canvases) != len(params):
        raise RequestError(f"begin: {len(canvases)} canvases with {len(params)} SamplingParams, expected as many of each, at least one.")
    for index, canvas in enumerate(canvases):
        check_canvas(index, canvas)
    B, T = len(canvases), max(canvas.length for canvas in canvases)
    R = max(canvas.answer_length for canvas in canvases)
    ids = np.full((B, T), mask_id, np.int64)
    is_open = np.zeros((B, R), bool)
    answer = np.full((B, R), mask_id, np.int64)
    for b, canvas in enumerate(canvases):
        ids[b, : canvas.length] = canvas.ids
        is_open[b, : canvas.answer_length] = canvas.is_open[canvas.answer_start :]
        answer[b, : canvas.answer_length] = canvas.ids[canvas.answer_start :]
    start = np.array([canvas.answer_start for canvas in canvases])
    length = np.array([canvas.answer_length for canvas in canvases])

    def put(values: Any, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.as_tensor(np.asarray(values), device=device).to(dtype, copy=True)

    seeds = put([one.seed for one in params])
    answer = _first_noise(put(answer), is_open, params, seeds, mask_id, ops)
    is_masked = is_open & (answer.cpu().numpy() == mask_id)
    plans = [plan_request(one, is_open[b, : length[b]], is_masked[b, : length[b]]) for b, one in enumerate(params)]
    max_steps = max(one.steps for one in params)
    offset = np.arange(T)[None] - start[:, None]
    is_answer = (offset >= 0) & (offset < length[:, None])
    column, is_answer = put(np.clip(offset, 0, R - 1)), put(is_answer, torch.bool)
    shown = torch.where(put(is_masked, torch.bool), mask_id, answer)
    return LadState(
        mask_id=mask_id,
        guided=tuple(one.cfg_scale > 0 for one in params),
        penalised=tuple(one.frequency_penalty != 0 or one.presence_penalty != 0 for one in params),
        max_steps=max_steps,
        visible=tuple(tuple(plan.visible.tolist()) for plan in plans),
        starts=tuple(start.tolist()),
        joined=(0,) * B,
        resting=(False,) * B,
        rules=row_rules(params, device),
        rule=build_token_rule(params, mask_id, eos_ids, device),
        tables=_tables(plans, put),
        ids=torch.where(is_answer, answer.gather(1, column), put(ids)),
        is_prompt=put(offset < 0, torch.bool),
        is_open=put(is_open, torch.bool),
        answer=answer,
        before=answer.clone(),
        predicted=torch.full_like(answer, -1),
        confidence=put(~is_open, torch.float32),
        shown=shown,
        was_shown=put(is_open & ~is_masked, torch.bool),
        retained=put(np.zeros((B, R)), torch.bool),
        first_set=torch.full_like(answer, -1),
        last_changed=torch.full_like(answer, -1),
        answer_start=put(start),
        answer_length=put(length),
        seeds=seeds,
        steps=put([one.steps for one in params]),
        early_stop=put([one.early_stop for one in params], torch.bool),
        evaluations=put([2 if one.cfg_scale > 0 else 1 for one in params]),
        done=put([False] * B, torch.bool),
        acted=put([False] * B, torch.bool),
        stopped_early=put([False] * B, torch.bool),
        repeats=put([0] * B),
        nfe=put([0] * B),
        row_steps=put([0] * B),
        columns=torch.arange(R, device=device),
        eos_ids=put(list(eos_ids)),
        step=put(0),
        bounds=put([max_steps, 0]),
    )


def check_canvas(index: int, canvas: Canvas) -> None:
    """Raise RequestError where a canvas has nothing to refine or does not hold together; index names it."""
    if canvas.is_open.shape != canvas.ids.shape or not 0 <= canvas.answer_start < canvas.length:
        raise RequestError(
            f"canvas {index}: ids {canvas.ids.shape}, is_open {canvas.is_open.shape}, answer_start {canvas.answer_start}, "
            "expected equal shapes and an answer that starts inside them."
        )
    if canvas.is_open[: canvas.answer_start].any():
        raise RequestError(f"canvas {index}: a prompt position is open, expected open positions inside the answer only.")
    if not canvas.is_open.any():
        raise RequestError(f"canvas {index}: no position is open, expected at least one to refine. Leave a gap in the draft.")


def _first_noise(answer: Tensor, is_open: np.ndarray, params: Sequence[SamplingParams], seeds: Tensor, mask_id: int, ops: Any) -> Tensor:
    """Mask noise_start of every draft's open tokens before step 0, so that refinement starts from a partly kept draft."""
    is_drafted = torch.as_tensor(is_open, device=answer.device) & (answer != mask_id)
    drafted = is_drafted.sum(1).tolist()
    count = torch.tensor([int(one.noise_start * n) for one, n in zip(params, drafted, strict=True)], device=answer.device)
    weight = torch.ones(answer.shape, dtype=torch.float32, device=answer.device)
    step = torch.zeros((), dtype=torch.int64, device=answer.device)
    return ops.renoise(answer, is_drafted, weight, count, seeds, step, mask_id, START)


def _tables(plans: Sequence[Plan], put: Any) -> StepTables:
    whole = np.stack([_column(plans, name).astype(np.int64) for name in WHOLE], axis=1)
    return StepTables(put(whole), put(_column(plans, "probability"), torch.float64))


def _column(plans: Sequence[Plan], name: str) -> np.ndarray:
    """Return one number of every plan `[S, B]`; a plan that ends before the longest repeats its last."""
    rows = [getattr(plan, name) for plan in plans]
    longest = max(map(len, rows))
    # Padding by nothing takes NumPy as long as the rest of this.
    return np.stack([row if len(row) == longest else np.pad(row, (0, longest - len(row)), mode="edge") for row in rows], axis=1)
