"""Buckets of the autoregressive baseline: the few shapes whose decode step is captured, and how a batch is laid into one of them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from operator import attrgetter

import torch
from torch import Tensor

from ..contracts import ModelFacts
from .autoregressive import AutoregressiveState, Memory
from .lad_bucket import TOP_KS, padded_length

# The axes of every buffer: B rows, P prompt positions, R new tokens, M biases, E ends, N bounds.
AXES = {
    "ids": "BP",
    **dict.fromkeys(("answer", "confidence", "first_set", "last_changed"), "BR"),
    "columns": "R",
    "stop_ids": "E",
    "step": "",
    "bounds": "N",
    "rule.bias_ids": "M",
    "rule.bias_values": "BM",
}
# What rows beyond the request hold, zero where nothing is said: a row that is done.
BLANK = {**dict.fromkeys(("first_set", "last_changed"), -1), **dict.fromkeys(("done", "limits", "rule.top_k", "rule.top_p"), 1)}


@dataclass(frozen=True)
class AutoregressiveBucket:
    """What is baked into one captured step: capacities (rows B, prompt P, answers R, positions of the cache) and the token rule's shape."""

    rows: int
    prompt: int
    answers: int
    positions: int
    max_top_k: int
    samples_all: bool
    biases: int
    ends: int


class AutoregressiveBuckets:
    """Sorts batches to continue into buckets (implements `runtime.graphs.Family`); `max_positions` is the base's longest sequence.

    Keys and values lie beside the buffers and are never copied: `AutoregressiveDecoder.prime_` reads the prompts into them.
    """

    frame = (
        *("done", "step", "acted", "stopped_early", "answer_length", "nfe", "row_steps"),
        *("answer", "confidence", "first_set", "last_changed"),
    )

    def __init__(self, max_positions: int) -> None:
        self.max_positions = max_positions

    def bucket_of(self, state: AutoregressiveState) -> AutoregressiveBucket:
        """Return the smallest bucket that holds the batch."""
        max_top_k = state.rule.max_top_k
        return AutoregressiveBucket(
            rows=1 << max(len(state.done) - 1, 0).bit_length(),
            prompt=padded_length(state.ids.shape[1]),
            answers=-(-state.answer.shape[1] // 64) * 64,
            positions=max(state.capacity, min(padded_length(state.capacity), self.max_positions)),
            max_top_k=next((k for k in TOP_KS if max_top_k <= k), 0) if max_top_k else 0,
            samples_all=state.rule.samples_all,
            biases=state.rule.bias_ids.shape[0],
            ends=state.stop_ids.shape[0],
        )

    def smaller(self, bucket: AutoregressiveBucket, rows: int) -> AutoregressiveBucket:
        """Return the bucket itself: keys and values lie where they were written, so no row moves to another."""
        return bucket

    def blank(self, bucket: AutoregressiveBucket, like: AutoregressiveState) -> AutoregressiveState:
        """Return host buffers of the bucket's shapes in which every row is done; dtypes and the rest follow `like`."""
        sizes = {
            "B": bucket.rows, "P": bucket.prompt, "R": bucket.answers, "M": bucket.biases, "E": bucket.ends, "N": like.bounds.shape[0],
        }  # fmt: skip

        def empty(path: str) -> Tensor:
            shape = tuple(sizes[axis] for axis in _axes_of(path))
            return torch.full(shape, BLANK.get(path, 0), dtype=attrgetter(path)(like).dtype)

        rule = dataclasses.replace(like.rule, **{name: empty(f"rule.{name}") for name in _tensor_fields(like.rule)})
        state = dataclasses.replace(
            like,
            max_steps=bucket.answers,
            capacity=bucket.positions,
            memory=Memory(),
            rule=dataclasses.replace(rule, max_top_k=bucket.max_top_k, samples_all=bucket.samples_all),
            resting=(),
            taken_steps=0,
            is_static=True,
            **{name: empty(name) for name in _tensor_fields(like)},
        )
        state.columns.copy_(torch.arange(bucket.answers))
        return state

    def fill(self, buffers: AutoregressiveState, state: AutoregressiveState) -> None:
        """Copy a batch that was laid out on the host into `buffers`, which are blank host buffers of its bucket."""
        for path in (*_tensor_fields(state), *(f"rule.{name}" for name in _tensor_fields(state.rule))):
            target, source = attrgetter(path)(buffers), attrgetter(path)(state)
            target[tuple(slice(0, size) for size in source.shape)] = source
        # Shared by the host buffers and those of the step.
        buffers.memory.prompt_lengths = state.memory.prompt_lengths

    def row_axis(self, path: str) -> int | None:
        """Return which axis of a buffer counts rows, None where the batch shares it."""
        axes = _axes_of(path)
        return axes.index("B") if "B" in axes else None


def cache_bytes(bucket: AutoregressiveBucket, facts: ModelFacts, item_bytes: int) -> int:
    """Return what the keys and values of a bucket take."""
    return 2 * facts.layers * bucket.rows * bucket.positions * facts.kv_heads * facts.head_width * item_bytes


def _axes_of(path: str) -> str:
    return AXES.get(path, "B")


def _tensor_fields(part: object) -> list[str]:
    return [field.name for field in dataclasses.fields(part) if isinstance(getattr(part, field.name), Tensor)]
