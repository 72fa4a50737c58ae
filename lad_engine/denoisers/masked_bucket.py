"""Buckets of masked-diffusion decodes: the few shapes and rules that are captured, and how a batch is laid into one of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter

import torch
from torch import Tensor

from . import row_facts
from .lad_bucket import LEAST_STEPS, TOP_KS, padded_length
from .masked_state import WHOLE, MaskedState

# The axes of every buffer and table: B rows, T canvas positions, R answer positions, S steps, P plan columns, M biases, E ends, N bounds.
AXES = {
    **dict.fromkeys(("ids", "is_prompt"), "BT"),
    **dict.fromkeys(("is_open", "answer", "before", "predicted", "confidence", "first_set", "last_changed", "order", "rank"), "BR"),
    "columns": "R",
    "eos_ids": "E",
    "step": "",
    "bounds": "N",
    "tables.whole": "SPB",
    "rule.bias_ids": "M",
    "rule.bias_values": "BM",
}
# What rows and positions beyond the request hold, zero where nothing is said: a row that is done, on a canvas of one position.
BLANK = {
    **dict.fromkeys(("first_set", "last_changed", "rules.factor"), -1),
    **dict.fromkeys(("confidence", "done", "steps", "evaluations", "answer_length", "rule.top_k", "rule.top_p", "rules.block_length"), 1),
    "rules.threshold": torch.inf,
    "rule.bias_values": -torch.inf,
}
MASKED = ("ids", "answer", "before", "predicted", "rule.bias_ids")
LANE_UNIT = 16
# What a row has on the host, for steps that read it.
HOST_FACTS = ("reads", "lengths", "guided")


@dataclass(frozen=True)
class MaskedBucket:
    """What is baked into one captured step: capacities (rows B, positions T, answers R, lanes, steps S) and the rules some row follows."""

    rows: int
    positions: int
    answers: int
    lanes: int
    steps: int
    used: frozenset[str]
    is_guided: bool
    max_top_k: int
    samples_all: bool
    biases: int
    ends: int
    mask_id: int


class MaskedBuckets:
    """Sorts masked-diffusion batches into buckets (implements `runtime.graphs.Family`); `max_positions` is the base's longest canvas."""

    def __init__(self, max_positions: int) -> None:
        self.max_positions = max_positions

    def bucket_of(self, state: MaskedState) -> MaskedBucket:
        """Return the smallest bucket that holds the batch."""
        rows, positions = state.ids.shape
        T = max(positions, min(padded_length(positions), self.max_positions))
        answers = min(-(-state.answer.shape[1] // 64) * 64, T)
        max_top_k = state.rule.max_top_k
        return MaskedBucket(
            rows=_power_of_two(rows),
            positions=T,
            answers=answers,
            lanes=min(-(-state.lanes // LANE_UNIT) * LANE_UNIT, answers),
            steps=max(LEAST_STEPS, _power_of_two(state.max_steps)),
            used=state.rules.used,
            is_guided=any(state.guided),
            max_top_k=next((k for k in TOP_KS if max_top_k <= k), 0) if max_top_k else 0,
            samples_all=state.rule.samples_all,
            biases=_power_of_two(state.rule.bias_ids.shape[0]),
            ends=state.eos_ids.shape[0],
            mask_id=state.mask_id,
        )

    def smaller(self, bucket: MaskedBucket, rows: int) -> MaskedBucket:
        """Return the same bucket with the smallest batch that holds `rows`."""
        return dataclasses.replace(bucket, rows=_power_of_two(rows))

    def blank(self, bucket: MaskedBucket, like: MaskedState) -> MaskedState:
        """Return host buffers of the bucket's shapes in which every row is done; dtypes and the rest follow `like`."""
        sizes = {
            "B": bucket.rows, "T": bucket.positions, "R": bucket.answers, "S": bucket.steps,
            "P": len(WHOLE), "M": bucket.biases, "E": bucket.ends, "N": like.bounds.shape[0],
        }  # fmt: skip

        def empty(path: str) -> Tensor:
            value = bucket.mask_id if path in MASKED else BLANK.get(path, 0)
            return torch.full(tuple(sizes[axis] for axis in AXES.get(path, "B")), value, dtype=attrgetter(path)(like).dtype)

        parts = {
            name: dataclasses.replace(part, **{key: empty(f"{name}.{key}") for key in _tensor_fields(part)})
            for name, part in (("rules", like.rules), ("rule", like.rule), ("tables", like.tables))
        }
        parts["rules"] = dataclasses.replace(parts["rules"], used=bucket.used)
        parts["rule"] = dataclasses.replace(parts["rule"], max_top_k=bucket.max_top_k, samples_all=bucket.samples_all)
        state = dataclasses.replace(
            like,
            guided=(bucket.is_guided,) * bucket.rows,
            max_steps=bucket.steps,
            lanes=bucket.lanes,
            reads=(),
            lengths=(),
            joined=(),
            resting=(),
            taken_steps=0,
            is_static=True,
            **parts,
            **{name: empty(name) for name in _tensor_fields(like)},
        )
        for columns in (state.columns, state.order, state.rank):
            columns.copy_(torch.arange(bucket.answers))
        return state

    def blank_rows(self, bucket: MaskedBucket, like: MaskedState) -> MaskedState:
        """Return `blank` for steps that read the plans' host integers, so that each row is forwarded at its own length."""
        B = bucket.rows
        state = dataclasses.replace(self.blank(bucket, like), is_static=False, guided=(False,) * B, resting=(True,) * B)
        return dataclasses.replace(state, reads=((0,),) * B, lengths=(1,) * B, joined=(0,) * B)

    def seat(self, state: MaskedState, slot: int, row: MaskedState) -> None:
        """Begin a request in row `slot`; see `row_facts`."""
        row_facts.seat(state, slot, row, HOST_FACTS)

    def rest(self, state: MaskedState, slot: int) -> None:
        """Leave a row out that is done."""
        row_facts.rest(state, slot)

    def move(self, source: MaskedState, target: MaskedState, slots: Sequence[int]) -> None:
        """Go on with rows `slots` of one batch in another."""
        row_facts.move(source, target, slots, HOST_FACTS)

    def fill(self, buffers: MaskedState, state: MaskedState) -> None:
        """Copy a batch that was laid out on the host into `buffers`, which are blank host buffers of its bucket."""
        for path in _paths(state):
            target, source = attrgetter(path)(buffers).numpy(), attrgetter(path)(state).numpy()
            target[tuple(slice(0, size) for size in source.shape)] = source
            if path == "tables.whole":
                # A step after the last of the batch reads numbers of the same request, not of the one before it.
                target[source.shape[0] :, :, : source.shape[2]] = source[-1]

    def row_axis(self, path: str) -> int | None:
        """Return which axis of a buffer counts rows, None where the batch shares it."""
        axes = AXES.get(path, "B")
        return axes.index("B") if "B" in axes else None


def _paths(state: MaskedState) -> list[str]:
    nested = [f"{name}.{key}" for name in ("rules", "rule", "tables") for key in _tensor_fields(getattr(state, name))]
    return [*_tensor_fields(state), *nested]


def _power_of_two(count: int) -> int:
    return 1 << max(count - 1, 0).bit_length()


def _tensor_fields(part: object) -> list[str]:
    return [field.name for field in dataclasses.fields(part) if isinstance(getattr(part, field.name), Tensor)]
