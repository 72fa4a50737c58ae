"""The buffers of one batch of L2D decodes, and how a batch of requests is copied into them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import SamplingParams
from ..contracts import Canvas, TokenRule
from ..errors import RequestError
from ..samplers.token_rule import build_token_rule
from ..schedules.flow_time import FlowPlan, velocity_temperature

# What the rows of a batch must agree on: it is the shape of the step.
SHARED = ("solver", "steps", "flow_end", "flow_estimate", "flow_tolerance")


class Memory:
    """Keys and values of a batch, allocated where it is first decoded, beside the buffers that requests are copied into.

    grid: what the times of its plan make of the flow path, which a captured step reads where it lies.
    prompt_lengths: of the requests in it; is_read: whether their prompts are in the cache.
    """

    def __init__(self, prompt_lengths: tuple[int, ...] = ()) -> None:
        self.cache: Any = None
        self.grid: Any = None
        self.prompt_lengths, self.is_read = prompt_lengths, False


@dataclass(frozen=True)
class FlowRules:
    """How the batch integrates, on the host: plan; estimate, tolerance as SamplingParams has them; samples (some velocity is drawn)."""

    plan: FlowPlan
    estimate: str
    tolerance: float
    samples: bool


@dataclass
class LatentState:
    """One batch being continued; row b is one request, column r its r-th new token. Tensors are written in place, never replaced.

    On the host, fixed: mask_id (what no token has: stands where there is none yet), max_steps, prompt_lengths, capacity (of the cache),
    flow, guided (rows whose velocity is guided). rule: how tokens are read; velocity: how velocities' targets are chosen, `[B W]` rows,
    its temperature and top_k the first of `tau` and `tau_top_k` `[E, B, W]`, one per evaluation (1 for an adaptive solver).
    Per prompt position `[B, P]`: ids. Per new token `[B, R]`: answer, before, predicted, confidence, is_open, first_set, last_changed.
    Per row `[B]`: hidden `[B, D]`, the main path's last row; token; positions, tokens cached; classes `[B, W]`, conditional and (W = 2,
    where some row is guided) null; tau_start, tau_power; seeds; steps, the limit of new tokens; answer_length, tokens made;
    evaluations of one token; done; acted; stopped_early; nfe; row_steps. columns `[R]`, components `[Z]`, draws `[2 E]`, eos_ids `[N]`,
    step `[]`.
    bounds: as LadState. is_static: the step reads no host number of the request, so that it can be captured.
    """

    mask_id: int
    max_steps: int
    prompt_lengths: tuple[int, ...]
    capacity: int
    flow: FlowRules
    guided: tuple[bool, ...]
    resting: tuple[bool, ...]
    memory: Memory
    rule: TokenRule
    velocity: TokenRule
    tau: Tensor
    tau_top_k: Tensor
    ids: Tensor
    answer: Tensor
    before: Tensor
    predicted: Tensor
    confidence: Tensor
    is_open: Tensor
    first_set: Tensor
    last_changed: Tensor
    hidden: Tensor
    token: Tensor
    positions: Tensor
    classes: Tensor
    tau_start: Tensor
    tau_power: Tensor
    seeds: Tensor
    steps: Tensor
    answer_length: Tensor
    evaluations: Tensor
    done: Tensor
    acted: Tensor
    stopped_early: Tensor
    nfe: Tensor
    row_steps: Tensor
    columns: Tensor
    components: Tensor
    draws: Tensor
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
    *,
    flow_width: int,
    hidden_like: tuple[int, torch.dtype],
    classes: int,
) -> LatentState:
    """Lay a batch out in fresh buffers; no prompt is read yet.

    classes: labels of the checkpoint's guidance table, 0 where it has none.
    Raises:
        RequestError: a canvas is not a prompt and an open answer, or the rows ask for different solvers.
    """
    if not canvases or len(canvases) != len(params):
        raise RequestError(f"begin: {len(canvases)} canvases with {len(params)} SamplingParams, expected as many of each, at least one.")
    for index, canvas in enumerate(canvases):
        check_canvas(index, canvas, mask_id)
    for index, one in enumerate(params):
        check_rules(index, one, params[0], classes)
    flow, guided = _flow_rules(params), tuple(one.cfg_scale > 0 for one in params)
    lengths = tuple(canvas.answer_start for canvas in canvases)
    B, R, W = len(canvases), max(canvas.answer_length for canvas in canvases), 2 if any(guided) else 1
    ids = np.zeros((B, max(lengths)), np.int64)
    for b, canvas in enumerate(canvases):
        ids[b, : lengths[b]] = canvas.ids[: lengths[b]]

    def put(values: Any, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.as_tensor(np.asarray(values), device=device).to(dtype, copy=True)

    tau = put([[[value] * W for value in row] for row in _ladder(flow.plan, params)], torch.float32)
    top_k = (tau == 0).long()
    limits = [canvas.answer_length for canvas in canvases]
    return LatentState(
        mask_id=mask_id,
        max_steps=R,
        prompt_lengths=lengths,
        capacity=max(length + limit for length, limit in zip(lengths, limits, strict=True)),
        flow=flow,
        guided=guided,
        resting=(False,) * B,
        memory=Memory(lengths),
        rule=build_token_rule(params, None, eos_ids, device),
        velocity=_velocity_rule(B * W, tau[0].flatten(), top_k[0].flatten(), flow.samples),
        tau=tau,
        tau_top_k=top_k,
        ids=put(ids),
        answer=put(np.full((B, R), mask_id)),
        before=put(np.full((B, R), mask_id)),
        predicted=put(np.full((B, R), mask_id)),
        confidence=put(np.zeros((B, R)), torch.float32),
        is_open=put(np.arange(R)[None] < np.array(limits)[:, None], torch.bool),
        first_set=put(np.full((B, R), -1)),
        last_changed=put(np.full((B, R), -1)),
        hidden=torch.zeros(B, hidden_like[0], dtype=hidden_like[1], device=device),
        token=put(np.zeros(B)),
        positions=put(lengths),
        classes=put([[classes if one.flow_label is None else one.flow_label, classes][:W] for one in params]),
        tau_start=put([one.flow_temperature for one in params], torch.float32),
        tau_power=put([one.flow_power for one in params], torch.float32),
        seeds=put([one.seed for one in params]),
        steps=put(limits),
        answer_length=put(np.zeros(B)),
        evaluations=put([_evaluations(flow.plan, 2 if is_guided else 1) for is_guided in guided]),
        done=put(np.zeros(B), torch.bool),
        acted=put(np.zeros(B), torch.bool),
        stopped_early=put(np.zeros(B), torch.bool),
        nfe=put(np.zeros(B)),
        row_steps=put(np.zeros(B)),
        columns=torch.arange(R, device=device),
        components=torch.arange(flow_width, device=device),
        draws=torch.arange(2 * max(len(flow.plan.stages), flow.plan.evaluations), device=device),
        eos_ids=put(list(eos_ids)),
        step=put(0),
        bounds=put([R, 0]),
    )


def check_canvas(index: int, canvas: Canvas, mask_id: int) -> None:
    """Raise RequestError where a canvas is not a prompt and an open answer; index names it."""
    start = canvas.answer_start
    if not 0 < start < canvas.length:
        raise RequestError(f"canvas {index}: its answer starts at {start} of {canvas.length}, expected a prompt of one token at least.")
    if not canvas.is_open[start:].all() or (canvas.ids[start:] != mask_id).any():
        raise RequestError(
            f"canvas {index}: the answer holds given text (a draft or an infill), expected an open one: this checkpoint writes from left "
            "to right. Leave it out."
        )


def check_rules(index: int, one: SamplingParams, first: SamplingParams, classes: int) -> None:
    """Raise RequestError where a request cannot be integrated beside the first of its batch, or names a label there is not."""
    for name in SHARED:
        if getattr(one, name) != getattr(first, name):
            raise RequestError(
                f"prompt {index}: {name} is {getattr(one, name)}, expected {getattr(first, name)} as of prompt 0: the rows of a batch are "
                "integrated together. Decode them apart."
            )
    if one.flow_label is not None and one.flow_label >= classes:
        wanted = f"0 to {classes - 1}" if classes else "none: this checkpoint was trained without labels"
        raise RequestError(f"prompt {index}: flow_label is {one.flow_label}, expected {wanted}.")
    if one.cfg_scale > 0 and one.flow_label is None:
        raise RequestError(f"prompt {index}: cfg_scale is {one.cfg_scale:g} without flow_label, expected the label to guide towards.")


def _flow_rules(params: Sequence[SamplingParams]) -> FlowRules:
    first = params[0]
    plan = FlowPlan(first.solver, first.steps, first.flow_end)
    return FlowRules(plan, first.flow_estimate, first.flow_tolerance, any(one.flow_temperature > 0 for one in params))


def _ladder(plan: FlowPlan, params: Sequence[SamplingParams]) -> list[list[float]]:
    """Return the velocity's temperature of every stage and row; an adaptive solver computes it where it stands."""
    times = [later for _, later in plan.stages] or [0.0]
    return [[velocity_temperature(t, one.flow_temperature, one.flow_power, one.flow_end) for one in params] for t in times]


def _evaluations(plan: FlowPlan, width: int) -> int:
    """Forward passes of one token that are known beforehand: the main path's, the flow path's on the grid, and the one that reads it."""
    if plan.is_adaptive:
        return 2 if plan.attempts else 1
    return 1 + (plan.asked - 1) * width + 1 if plan.intervals else 1


def _velocity_rule(rows: int, temperature: Tensor, top_k: Tensor, samples: bool) -> TokenRule:
    ones, no = torch.ones_like(temperature), torch.zeros_like(top_k, dtype=torch.bool)
    nothing = torch.zeros(1, dtype=torch.int64, device=top_k.device), torch.zeros(rows, 1, device=top_k.device)
    return TokenRule(temperature, top_k, ones, no, ~no, ones * 0, *nothing, max_top_k=1, samples_all=samples)


def tensor_fields(part: object) -> list[str]:
    """Return the names of a dataclass's tensors."""
    return [field.name for field in fields(part) if isinstance(getattr(part, field.name), Tensor)]
