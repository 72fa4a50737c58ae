"""Buckets of LAD decodes: the few shapes and rules that are captured, and how a batch of requests is laid into one of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter

import torch
from torch import Tensor

from . import row_facts
from .lad_state import WHOLE, LadState

# The axes of every buffer and table: B rows, T canvas positions, R answer positions, S steps, P plan columns, M biases, E ends, N bounds.
AXES = {
    **dict.fromkeys(("ids", "is_prompt"), "BT"),
    **dict.fromkeys(("is_open", "answer", "before", "predicted", "confidence", "shown"), "BR"),
    **dict.fromkeys(("was_shown", "retained", "first_set", "last_changed"), "BR"),
    **dict.fromkeys(("answer_start", "answer_length", "seeds", "steps", "early_stop", "evaluations"), "B"),
    **dict.fromkeys(("done", "acted", "stopped_early", "repeats", "nfe", "row_steps"), "B"),
    "columns": "R",
    "eos_ids": "E",
    "step": "",
    "bounds": "N",
    "tables.whole": "SPB",
    "tables.probability": "SB",
    "rule.bias_ids": "M",
    "rule.bias_values": "BM",
}
# What rows and positions beyond the request hold, zero where nothing is said: a row that is done, on a canvas of one position.
BLANK = {
    **dict.fromkeys(("predicted", "first_set", "last_changed"), -1),
    **dict.fromkeys(("confidence", "done", "steps", "evaluations", "rule.top_k", "rule.top_p"), 1),
    # Padding repeats the mask's own bias, -inf, which adding it twice does not change.
    "rule.bias_values": -torch.inf,
}
MASKED = ("ids", "answer", "before", "shown", "rule.bias_ids")
# Candidates that get sorted: a batch takes the next of these, or the whole vocabulary (0) beyond the last.
TOP_KS = (1, 4, 16, 64, 256, 1024)
LEAST_STEPS = 16
# What a row has on the host, for steps that read it.
HOST_FACTS = ("visible", "starts", "guided", "penalised")


@dataclass(frozen=True)
class LadBucket:
    """What is baked into one captured step: capacities (rows B, positions T, answers R, steps S) and the rules some row follows.

    biases: entries of the token rule's bias, ends: EOS ids, max_top_k, samples_all: see TokenRule.
    """

    rows: int
    positions: int
    answers: int
    steps: int
    used: frozenset[str]
    is_guided: bool
    is_penalised: bool
    max_top_k: int
    samples_all: bool
    biases: int
    ends: int
    mask_id: int


class LadBuckets:
    """Sorts LAD batches into buckets (implements `runtime.graphs.Family`); `max_positions` is the longest canvas of the base."""

    def __init__(self, max_positions: int) -> None:
        self.max_positions = max_positions

    def bucket_of(self, state: LadState) -> LadBucket:
        """Return the smallest bucket that holds the batch."""
        rows, positions = state.ids.shape
        T = max(positions, min(padded_length(positions), self.max_positions))
        return LadBucket(
            rows=_power_of_two(rows),
            positions=T,
            answers=min(-(-state.answer.shape[1] // 64) * 64, T),
            steps=max(LEAST_STEPS, _power_of_two(state.max_steps)),
            used=state.rules.used,
            is_guided=any(state.guided),
            is_penalised=any(state.penalised),
            max_top_k=_sorted_candidates(state.rule.max_top_k),
            samples_all=state.rule.samples_all,
            biases=_power_of_two(state.rule.bias_ids.shape[0]),
            ends=state.eos_ids.shape[0],
            mask_id=state.mask_id,
        )

    def smaller(self, bucket: LadBucket, rows: int) -> LadBucket:
        """Return the same bucket with the smallest batch that holds `rows`."""
        return dataclasses.replace(bucket, rows=_power_of_two(rows))

    def blank(self, bucket: LadBucket, like: LadState) -> LadState:
        """Return host buffers of the bucket's shapes in which every row is done; dtypes and the rest follow `like`."""
        sizes = {
            "B": bucket.rows, "T": bucket.positions, "R": bucket.answers, "S": bucket.steps,
            "P": len(WHOLE), "M": bucket.biases, "E": bucket.ends, "N": like.bounds.shape[0],
        }  # fmt: skip

        def empty(path: str) -> Tensor:
            shape = tuple(sizes[axis] for axis in axes_of(path))
            value = bucket.mask_id if path in MASKED else BLANK.get(path, 0)
            return torch.full(shape, value, dtype=attrgetter(path)(like).dtype)

        parts = {
            name: dataclasses.replace(part, **{key: empty(f"{name}.{key}") for key in _tensor_fields(part)})
            for name, part in (("rules", like.rules), ("rule", like.rule), ("tables", like.tables))
        }
        parts["rules"] = dataclasses.replace(parts["rules"], used=bucket.used)
        parts["rule"] = dataclasses.replace(parts["rule"], max_top_k=bucket.max_top_k, samples_all=bucket.samples_all)
        state = dataclasses.replace(
            like,
            guided=(bucket.is_guided,) * bucket.rows,
            penalised=(bucket.is_penalised,) * bucket.rows,
            max_steps=bucket.steps,
            visible=(),
            starts=(),
            joined=(),
            resting=(),
            taken_steps=0,
            is_static=True,
            **parts,
            **{name: empty(name) for name in _tensor_fields(like)},
        )
        state.columns.copy_(torch.arange(bucket.answers))
        state.tables.whole[:, WHOLE.index("visible")] = 1
        return state

    def blank_rows(self, bucket: LadBucket, like: LadState) -> LadState:
        """Return `blank` for steps that read the plans' host integers, so that each row is forwarded at its own length."""
        B = bucket.rows
        nobody = (False,) * B
        state = dataclasses.replace(self.blank(bucket, like), is_static=False, guided=nobody, penalised=nobody, resting=(True,) * B)
        return dataclasses.replace(state, visible=((1,),) * B, starts=(0,) * B, joined=(0,) * B)

    def seat(self, state: LadState, slot: int, row: LadState) -> None:
        """Begin a request in row `slot`; see `row_facts`."""
        row_facts.seat(state, slot, row, HOST_FACTS)

    def rest(self, state: LadState, slot: int) -> None:
        """Leave a row out that is done."""
        row_facts.rest(state, slot)

    def move(self, source: LadState, target: LadState, slots: Sequence[int]) -> None:
        """Go on with rows `slots` of one batch in another."""
        row_facts.move(source, target, slots, HOST_FACTS)

    def fill(self, buffers: LadState, state: LadState) -> None:
        """Copy a batch that was laid out on the host into `buffers`, which are blank host buffers of its bucket."""
        for path in paths(state):
            # NumPy's slices: a third of torch's time per copy, and there are fifty.
            target, source = attrgetter(path)(buffers).numpy(), attrgetter(path)(state).numpy()
            target[tuple(slice(0, size) for size in source.shape)] = source
            if axes_of(path).startswith("S"):
                # A step after the last of the batch reads numbers of the same request, not of the one before it.
                target[source.shape[0] :, ..., : source.shape[-1]] = source[-1]

    def row_axis(self, path: str) -> int | None:
        """Return which axis of a buffer counts rows, None where the batch shares it."""
        axes = axes_of(path)
        return axes.index("B") if "B" in axes else None


def paths(state: LadState) -> list[str]:
    """Return the names of all tensors of a state, those of its tables as "tables.whole"."""
    nested = [f"{name}.{key}" for name in ("rules", "rule", "tables") for key in _tensor_fields(getattr(state, name))]
    return [*_tensor_fields(state), *nested]


def axes_of(path: str) -> str:
    """Return the axes of a buffer; every table of a rule is per row unless said otherwise."""
    return AXES[path] if path in AXES or not path.startswith(("rules.", "rule.")) else "B"


def padded_length(positions: int) -> int:
    """Return the canvas length that is captured for `positions`: multiples of 128 up to 512, of 256 beyond."""
    unit = 128 if positions <= 512 else 256
    return -(-positions // unit) * unit


def _power_of_two(count: int) -> int:
    return 1 << max(count - 1, 0).bit_length()


def _sorted_candidates(max_top_k: int) -> int:
    return next((k for k in TOP_KS if max_top_k <= k), 0) if max_top_k else 0


def _tensor_fields(part: object) -> list[str]:
    return [field.name for field in dataclasses.fields(part) if isinstance(getattr(part, field.name), Tensor)]
