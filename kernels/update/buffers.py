"""What an update reads and writes: the buffers of a batch, its rules, and its plans' numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

# A row stops after as many equal predictions one after the other (the LAD paper and its authors' Space).
EQUAL_PREDICTIONS = 3
# What `used` may name: the rules of `UpdateRules`, "split" where some row shares its budget between text and EOS,
# and "threshold" where some row transfers by one.
RULES = ("none", "random", "clusters", "bernoulli", "confidence", "weighted", "retain", "transfer", "split", "threshold")
# The columns of `UpdateTables.whole`, in their order.
WHOLE = ("visible", "grows", "count", "keep", "clusters", "cluster_size", "transfer", "block_start", "block_end")

_PER_POSITION = {
    **dict.fromkeys(("answer", "before", "predicted", "shown", "first_set", "last_changed"), torch.int64),
    **dict.fromkeys(("is_open", "was_shown", "retained"), torch.bool),
    "confidence": torch.float32,
}
_PER_ROW = {
    **dict.fromkeys(("answer_start", "answer_length", "seeds", "steps", "evaluations", "repeats", "nfe", "row_steps"), torch.int64),
    **dict.fromkeys(("early_stop", "done", "acted", "stopped_early"), torch.bool),
}


@dataclass
class UpdateBuffers:
    """One batch being refined; any object with these attributes will do. Row b is one request, column r answer position r.

    Read only: is_open, answer_start, answer_length, seeds, steps, early_stop, evaluations, eos_ids. The others are written in place.
    Per answer position `[B, R]`, one stride between rows for all: is_open bool; answer int64, the state (mask_id where open and
    re-noised); before int64, the state ahead of the last step; predicted int64, the last prediction; confidence fp32 of the token
    predicted last; shown int64, the last token other than mask_id; was_shown, retained bool; first_set, last_changed int64, -1 where never.
    Per row `[B]`: answer_start, answer_length, seeds, steps, evaluations (forwards a step), repeats (equal predictions in a row), nfe,
    row_steps (steps taken) int64; early_stop, done, acted (took part in the last step), stopped_early bool.
    ids `[B, T]` int64, the canvas; eos_ids `[E]` int64; step `[]` int64, the calls so far: each
    row is at its own row_steps, since rows may join at different calls.
    """

    ids: Tensor
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
    eos_ids: Tensor
    step: Tensor


@dataclass(frozen=True)
class UpdateRules:
    """Which rule each row follows, at most one of the first seven; `[B]` bool, noise_clip and threshold fp32.

    redraws (exactly `count` drawn: random, or by weight where is_weighted), is_clusters, is_bernoulli, is_lowest (confidence), retains,
    transfers; locks (retained positions keep their token), is_permanent, splits (eos_split), by_confidence (selection), delays_eos.
    threshold: a transferring row commits, beside its budget, what is at least this sure, in its leftmost block with a masked position;
    infinite where a row has none.
    """

    redraws: Tensor
    is_weighted: Tensor
    is_clusters: Tensor
    is_bernoulli: Tensor
    is_lowest: Tensor
    retains: Tensor
    transfers: Tensor
    locks: Tensor
    is_permanent: Tensor
    splits: Tensor
    by_confidence: Tensor
    delays_eos: Tensor
    noise_clip: Tensor
    threshold: Tensor


@dataclass(frozen=True)
class UpdateTables:
    """Every step's numbers: whole `[S, 9, B]` int64 with the columns WHOLE, probability `[S, B]` fp64; contiguous.

    visible: answer columns on the canvas; grows: 1 where that is more than the step before; probability: of each position to be
    re-noised; count: positions to re-noise; keep: positions to retain; clusters of cluster_size positions to re-noise; transfer:
    positions to commit between block_start and block_end, which for a row with a threshold are 0 and the width of its blocks. The last
    step re-noises nothing. Counts are at least 0 and below 2^16.
    """

    whole: Tensor
    probability: Tensor


@dataclass(frozen=True)
class StepNumbers:
    """Each row's numbers at its step: `[B]` int64, grows bool, probability fp64."""

    visible: Tensor
    grows: Tensor
    count: Tensor
    keep: Tensor
    clusters: Tensor
    cluster_size: Tensor
    transfer: Tensor
    block_start: Tensor
    block_end: Tensor
    probability: Tensor


def numbers_at(tables: UpdateTables, step: Tensor) -> StepNumbers:
    """Read each row's numbers at its own step `[B]`; a step beyond the last reads the last."""
    row = step.clamp(max=tables.whole.shape[0] - 1)[None]
    visible, grows, *rest = tables.whole.gather(0, row[:, None].expand(1, len(WHOLE), -1))[0].unbind(0)
    return StepNumbers(visible, grows > 0, *rest, tables.probability.gather(0, row)[0])


def check(
    buffers: UpdateBuffers, rules: UpdateRules, tables: UpdateTables, token: Tensor, confidence: Tensor, used: frozenset[str]
) -> None:
    """Raise ValueError where a shape, a dtype or a layout disagrees, or `used` names no rule."""
    if used - set(RULES):
        raise ValueError(f"update: used is {sorted(used)}, expected names among {', '.join(RULES)}.")
    B, R = buffers.answer.shape
    S = tables.whole.shape[0]
    for name, value, shape, dtype in _expected(buffers, rules, B, R):
        if value.shape != shape or value.dtype != dtype:
            raise ValueError(f"update: {name} is {tuple(value.shape)} {value.dtype}, expected {shape} {dtype} to match answer {(B, R)}.")
    for name, value, shape, dtype in (
        ("tables.whole", tables.whole, (S, len(WHOLE), B), torch.int64),
        ("tables.probability", tables.probability, (S, B), torch.float64),
        ("token", token, (B, R), torch.int64),
        ("confidence", confidence, (B, R), torch.float32),
    ):
        if value.shape != shape or value.dtype != dtype:
            raise ValueError(f"update: {name} is {tuple(value.shape)} {value.dtype}, expected {shape} {dtype}.")
    if not (tables.whole.is_contiguous() and tables.probability.is_contiguous()):
        raise ValueError("update: the tables are strided, expected contiguous. Copy them.")
    strides = {getattr(buffers, name).stride() for name in _PER_POSITION} if R > 1 else set()
    if len(strides) > 1 or any(stride[1] != 1 for stride in strides):
        raise ValueError(f"update: the [B, R] buffers have strides {sorted(strides)}, expected the same for all, the last 1.")


def _expected(buffers: UpdateBuffers, rules: UpdateRules, B: int, R: int) -> Iterator[tuple[str, Tensor, tuple[int, ...], torch.dtype]]:
    for name, dtype in _PER_POSITION.items():
        yield name, getattr(buffers, name), (B, R), dtype
    for name, dtype in _PER_ROW.items():
        yield name, getattr(buffers, name), (B,), dtype
    for name in UpdateRules.__dataclass_fields__:
        yield f"rules.{name}", getattr(rules, name), (B,), torch.float32 if name in ("noise_clip", "threshold") else torch.bool
    yield "step", buffers.step, (), torch.int64
    yield "ids", buffers.ids, (B, buffers.ids.shape[-1]), torch.int64
    yield "eos_ids", buffers.eos_ids, (buffers.eos_ids.numel(),), torch.int64
