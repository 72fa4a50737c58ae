"""Buckets of L2D decodes: the few shapes that are captured, and how a batch of requests is laid into one of them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from operator import attrgetter

import torch
from torch import Tensor

from ..contracts import ModelFacts
from .lad_bucket import LEAST_STEPS, padded_length
from .latent_state import FlowRules, LatentState, Memory, tensor_fields

# The axes of every buffer and table: B rows, P prompt positions, R new tokens, D width, W classes a row is evaluated with, N their
# product with B, Q evaluations, Z latent width, U uniforms, M biases, E ends, L bounds.
AXES = {
    "ids": "BP",
    **dict.fromkeys(("answer", "before", "predicted", "confidence", "is_open", "first_set", "last_changed"), "BR"),
    "hidden": "BD",
    "classes": "BW",
    **dict.fromkeys(("tau", "tau_top_k"), "QBW"),
    "columns": "R",
    "components": "Z",
    "draws": "U",
    "eos_ids": "E",
    "step": "",
    "bounds": "L",
    "rule.bias_ids": "M",
    "rule.bias_values": "BM",
    "velocity.bias_ids": "M",
    "velocity.bias_values": "NM",
}
# What rows and positions beyond the request hold, zero where nothing is said: a row that is done, after a prompt of one token.
BLANK = {
    **dict.fromkeys(("first_set", "last_changed"), -1),
    **dict.fromkeys(("done", "steps", "positions", "evaluations", "tau_top_k", "rule.top_k", "rule.top_p", "rule.full_confidence"), 1),
    **dict.fromkeys(("velocity.top_k", "velocity.top_p", "velocity.full_confidence"), 1),
}
EMPTY = ("answer", "before", "predicted")


@dataclass(frozen=True)
class LatentBucket:
    """What is baked into one captured step: capacities (rows B, positions of the cache, answers R, steps S) and the integration."""

    rows: int
    positions: int
    answers: int
    steps: int
    flow: FlowRules
    is_guided: bool
    max_top_k: int
    samples_all: bool
    biases: int
    ends: int
    mask_id: int


class LatentBuckets:
    """Sorts L2D batches into buckets (implements `runtime.graphs.Family`); `max_positions` is the longest sequence of the base."""

    def __init__(self, max_positions: int) -> None:
        self.max_positions = max_positions

    def bucket_of(self, state: LatentState) -> LatentBucket:
        """Return the smallest bucket that holds the batch."""
        positions = max(state.capacity, min(padded_length(state.capacity), self.max_positions))
        return LatentBucket(
            rows=1 << max(len(state.done) - 1, 0).bit_length(),
            positions=positions,
            answers=min(-(-state.answer.shape[1] // 64) * 64, positions),
            steps=max(LEAST_STEPS, state.max_steps),
            flow=state.flow,
            is_guided=any(state.guided),
            max_top_k=state.rule.max_top_k,
            samples_all=state.rule.samples_all,
            biases=state.rule.bias_ids.shape[0],
            ends=state.eos_ids.shape[0],
            mask_id=state.mask_id,
        )

    def smaller(self, bucket: LatentBucket, rows: int) -> LatentBucket:
        """Return the bucket itself: keys and values lie where they were written, so no row moves to another."""
        return bucket

    def blank(self, bucket: LatentBucket, like: LatentState) -> LatentState:
        """Return host buffers of the bucket's shapes in which every row is done; dtypes and the rest follow `like`."""
        W = like.classes.shape[1]
        sizes = {
            "B": bucket.rows, "P": bucket.positions, "R": bucket.answers, "W": W, "N": bucket.rows * W, "D": like.hidden.shape[1],
            "Q": like.tau.shape[0], "Z": like.components.shape[0], "U": like.draws.shape[0], "E": bucket.ends, "L": like.bounds.shape[0],
        }  # fmt: skip

        def empty(path: str) -> Tensor:
            now = attrgetter(path)(like)
            axes = {**sizes, "M": now.shape[-1] if now.ndim else 1}
            shape = tuple(axes[axis] for axis in axes_of(path))
            return torch.full(shape, bucket.mask_id if path in EMPTY else BLANK.get(path, 0), dtype=now.dtype)

        parts = {}
        for name in ("rule", "velocity"):
            part = getattr(like, name)
            parts[name] = dataclasses.replace(part, **{key: empty(f"{name}.{key}") for key in tensor_fields(part)})
        state = dataclasses.replace(
            like,
            max_steps=bucket.steps,
            prompt_lengths=(),
            capacity=bucket.positions,
            guided=(bucket.is_guided,) * bucket.rows,
            resting=(),
            memory=Memory(),
            taken_steps=0,
            is_static=True,
            **parts,
            **{name: empty(name) for name in tensor_fields(like)},
        )
        for name in ("columns", "components", "draws"):
            buffer = getattr(state, name)
            buffer.copy_(torch.arange(len(buffer)))
        return state

    def fill(self, buffers: LatentState, state: LatentState) -> None:
        """Copy a batch that was laid out on the host into `buffers`, which are blank host buffers of its bucket."""
        for path in paths(state):
            target, source = attrgetter(path)(buffers), attrgetter(path)(state)
            target[tuple(slice(0, size) for size in source.shape)] = source
        buffers.memory.prompt_lengths, buffers.memory.is_read = state.prompt_lengths, False

    def beside(self, bucket: LatentBucket, facts: ModelFacts, item_bytes: int) -> int:
        """Return the bytes of what a decode keeps beside its buffers: keys and values, and, made once per model, the flow table (whole
        and in the pieces it is put together from) and what each time of the grid makes of the flow path.
        """
        cache = 2 * facts.layers * bucket.rows * bucket.positions * facts.kv_heads * facts.head_width * item_bytes
        table = 2 * facts.vocab_size * facts.extra["flow_width"] * 4
        times = len(bucket.flow.plan.stages) + 1
        grid = 2 * times * (facts.extra["classes"] + 1) * (6 * facts.layers + 1) * facts.width * 4
        return cache + table + grid

    def row_axis(self, path: str) -> int | None:
        """Return which axis of a buffer counts rows, None where the batch shares it."""
        axes = axes_of(path)
        return axes.index("B") if "B" in axes else None


def paths(state: LatentState) -> list[str]:
    """Return the names of all tensors of a state, those of its rules as "rule.top_p"."""
    nested = [f"{name}.{key}" for name in ("rule", "velocity") for key in tensor_fields(getattr(state, name))]
    return [*tensor_fields(state), *nested]


def axes_of(path: str) -> str:
    """Return the axes of a buffer; what is not named has one entry per row (of a velocity: per row and class)."""
    return AXES.get(path, "N" if path.startswith("velocity.") else "B")
