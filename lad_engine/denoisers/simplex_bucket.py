"""Buckets of simplex decodes: the few shapes that are captured, and how a batch of requests is laid into one of them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from operator import attrgetter

import torch
from torch import Tensor

from .lad_bucket import LEAST_STEPS, padded_length
from .simplex_state import SimplexState

# The axes of every buffer and table: B rows, T canvas positions, R answer positions, D width, S steps, M biases, E ends, N bounds.
AXES = {
    **dict.fromkeys(("ids", "column", "is_soft"), "BT"),
    **dict.fromkeys(("is_open", "answer", "before", "predicted", "confidence", "first_set", "last_changed"), "BR"),
    **dict.fromkeys(("tables.signal", "tables.sigma", "tables.time"), "SB"),
    "soft": "BRD",
    "columns": "R",
    "eos_ids": "E",
    "step": "",
    "bounds": "N",
    "rule.bias_ids": "M",
    "rule.bias_values": "BM",
}
# What rows and positions beyond the request hold, zero where nothing is said: a row that is done, on a canvas of one position.
BLANK = {
    **dict.fromkeys(("predicted", "first_set", "last_changed"), -1),
    **dict.fromkeys(("confidence", "done", "steps", "answer_length", "tables.signal"), 1),
    **dict.fromkeys(("rule.temperature", "rule.top_p"), 1),
}
MASKED = ("ids", "answer", "before")


@dataclass(frozen=True)
class SimplexBucket:
    """What is baked into one captured step: capacities (rows B, positions T, answers R, steps S) and how tokens are drawn."""

    rows: int
    positions: int
    answers: int
    steps: int
    max_top_k: int
    samples_all: bool
    biases: int
    ends: int
    mask_id: int
    is_guided: bool = False


class SimplexBuckets:
    """Sorts simplex batches into buckets (implements `runtime.graphs.Family`); `max_positions` is the base's longest canvas."""

    def __init__(self, max_positions: int) -> None:
        self.max_positions = max_positions

    def can_capture(self, state: SimplexState) -> bool:
        """Whether a step of this batch is captured: reward guidance and ddim read what each request asks on the host."""
        return state.noise is None and not any(one.reward_scale for one in state.params)

    def bucket_of(self, state: SimplexState) -> SimplexBucket:
        """Return the smallest bucket that holds the batch."""
        rows, positions = state.ids.shape
        T = max(positions, min(padded_length(positions), self.max_positions))
        return SimplexBucket(
            rows=_power_of_two(rows),
            positions=T,
            answers=min(-(-state.answer.shape[1] // 64) * 64, T),
            steps=max(LEAST_STEPS, _power_of_two(state.max_steps)),
            max_top_k=state.rule.max_top_k,
            samples_all=state.rule.samples_all,
            biases=state.rule.bias_ids.shape[0],
            ends=state.eos_ids.shape[0],
            mask_id=state.mask_id,
        )

    def smaller(self, bucket: SimplexBucket, rows: int) -> SimplexBucket:
        """Return the same bucket with the smallest batch that holds `rows`."""
        return dataclasses.replace(bucket, rows=_power_of_two(rows))

    def blank(self, bucket: SimplexBucket, like: SimplexState) -> SimplexState:
        """Return host buffers of the bucket's shapes in which every row is done; dtypes and the rest follow `like`."""
        sizes = {
            "B": bucket.rows, "T": bucket.positions, "R": bucket.answers, "S": bucket.steps, "D": like.soft.shape[2],
            "M": bucket.biases, "E": bucket.ends, "N": like.bounds.shape[0],
        }  # fmt: skip

        def empty(path: str) -> Tensor:
            shape = tuple(sizes[axis] for axis in AXES.get(path, "B"))
            value = bucket.mask_id if path in MASKED else BLANK.get(path, 0)
            return torch.full(shape, value, dtype=attrgetter(path)(like).dtype)

        parts = {
            name: dataclasses.replace(part, **{key: empty(f"{name}.{key}") for key in _tensor_fields(part)})
            for name, part in (("rule", like.rule), ("tables", like.tables))
        }
        state = dataclasses.replace(
            like,
            max_steps=bucket.steps,
            lengths=(),
            counts=(),
            params=(),
            resting=(),
            noise=None,
            taken_steps=0,
            is_static=True,
            **parts,
            **{name: empty(name) for name in _tensor_fields(like)},
        )
        state.columns.copy_(torch.arange(bucket.answers))
        return state

    def fill(self, buffers: SimplexState, state: SimplexState) -> None:
        """Copy a batch that was laid out on the host into `buffers`, which are blank host buffers of its bucket."""
        for path in [
            *_tensor_fields(state),
            *(f"{name}.{key}" for name in ("rule", "tables") for key in _tensor_fields(getattr(state, name))),
        ]:
            target, source = attrgetter(path)(buffers), attrgetter(path)(state)
            target[tuple(slice(0, size) for size in source.shape)] = source
            if AXES.get(path, "B").startswith("S"):
                # A pass after the last of the batch reads numbers of the same request, not of the one before it.
                target[source.shape[0] :, : source.shape[1]] = source[-1]

    def row_axis(self, path: str) -> int | None:
        """Return which axis of a buffer counts rows, None where the batch shares it."""
        axes = AXES.get(path, "B")
        return axes.index("B") if "B" in axes else None


def _power_of_two(count: int) -> int:
    return 1 << max(count - 1, 0).bit_length()


def _tensor_fields(part: object) -> list[str]:
    return [field.name for field in dataclasses.fields(part) if isinstance(getattr(part, field.name), Tensor)]
