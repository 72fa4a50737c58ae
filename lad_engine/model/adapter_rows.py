"""Which resident adapter every sequence of the running batch uses, and the stacked weights that are chosen by it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import AdapterError

BASE = -1


class AdapterRows:
    """One device buffer of slots, `[max_rows]` int64 with -1 for the base, which projections and norms read in every forward.

    Its address never changes, so a captured step follows whatever is put in. What a forward of B sequences reads is the first B
    entries, or within `only(b)` entry b.
    """

    def __init__(self, max_rows: int, device: torch.device | str) -> None:
        self.index = torch.full((max_rows,), BASE, dtype=torch.int64, device=device)
        self.is_bypassed = False
        self._first = 0

    def put(self, slots: Sequence[int]) -> None:
        """Copy the slots of a batch in; rows beyond it use the base."""
        padded = [*slots, *([BASE] * (len(self.index) - len(slots)))]
        self.index.copy_(torch.tensor(padded, dtype=torch.int64))

    def move(self, rows: Sequence[int]) -> None:
        """Keep the named rows of the batch, in this order; the rest use the base."""
        self.put([self.index.tolist()[row] for row in rows])

    def of(self, sequences: int) -> Tensor:
        """Return the view `[sequences]` that the next forward reads."""
        return self.index[self._first : self._first + sequences]

    @contextmanager
    def only(self, row: int) -> Iterator[None]:
        """Within the block a forward is about row `row` of the batch alone."""
        self._first = row
        try:
            yield
        finally:
            self._first = 0

    @contextmanager
    def bypassed(self) -> Iterator[None]:
        """Within the block every forward is the base's, with whatever is attached to it by other means."""
        self.is_bypassed = True
        try:
            yield
        finally:
            self.is_bypassed = False


@dataclass(frozen=True)
class LowRankStack:
    """The low-rank pairs of every slot for one projection; without `rows` this is what the op `lora_linear` takes.

    a: `[A, P, R, in]`; b: `[A, out, R]`; scales: `[A]` fp32; parts: P ranges of the projection's rows. Free slots hold zeros.
    """

    a: Tensor
    b: Tensor
    scales: Tensor
    parts: tuple[tuple[int, int], ...]
    rows: AdapterRows

    def of(self, sequences: int) -> tuple[Tensor, Tensor, Tensor, Tensor, tuple[tuple[int, int], ...]]:
        """Return the op's argument for a forward of this many sequences."""
        return self.a, self.b, self.scales, self.rows.of(sequences), self.parts


def with_row_norms(ops: Any, gains: Mapping[nn.Parameter, Tensor], rows: AdapterRows) -> Any:
    """Return `ops` whose add_rmsnorm takes each sequence's own weight from `gains` `[A + 1, D]`, the base's last, where a norm has them.

    Raises (when called):
        AdapterError: `x` is not `[B, T, D]`, so that its sequences cannot be told apart.
    """
    plain = ops.add_rmsnorm

    def add_rmsnorm(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float = 1e-5) -> tuple[Tensor, Tensor]:
        stacked = None if rows.is_bypassed else gains.get(weight)
        if stacked is None:
            return plain(x, residual, weight, eps)
        if x.ndim != 3:
            raise AdapterError(f"norm: x is {tuple(x.shape)}, expected [B, T, D] while several adapters are resident. Keep the batch axis.")
        return plain(x, residual, stacked, eps, rows.of(x.shape[0]))

    return dataclasses.replace(ops, add_rmsnorm=add_rmsnorm)
