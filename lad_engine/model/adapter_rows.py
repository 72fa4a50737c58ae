"""Which resident adapter every sequence of the running batch uses, and the stacked weights that are chosen by it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import AdapterError

BASE = -1


class AdapterRows:
    """One device buffer of slots, `[max_rows]` int64 with -1 for the base, which projections and norms read in every forward.

    Its address never changes, so a captured step follows whatever is put in. A forward of `[B, T, D]` reads the first B entries;
    within `span` every forward and every norm of flat rows reads those of the span. nbytes: device memory of everything that is chosen
    by it, which the store says.
    """

    nbytes: int = 0

    def __init__(self, max_rows: int, device: torch.device | str) -> None:
        self.index = torch.full((max_rows,), BASE, dtype=torch.int64, device=device)
        self.is_bypassed = False
        self._span: tuple[int, int] | None = None

    def put(self, slots: Sequence[int]) -> None:
        """Copy the slots of a batch in; rows beyond it use the base."""
        padded = [*slots, *([BASE] * (len(self.index) - len(slots)))]
        self.index.copy_(torch.tensor(padded, dtype=torch.int64))

    def move(self, rows: Tensor) -> None:
        """Keep the rows `[N]` int64 of the batch, in this order; the rest use the base. Nothing is read on the host."""
        kept = self.index.index_select(0, rows)
        self.index.fill_(BASE)
        self.index[: rows.shape[0]] = kept

    def of(self, x: Tensor) -> Tensor:
        """Return the view `[M]` of the sequences in `x`, each with an equal share of its rows.

        Raises:
            AdapterError: the sequences of flat rows cannot be told apart outside a span.
        """
        if self._span is not None:
            return self.index[self._span[0] : self._span[1]]
        if x.ndim != 3:
            raise AdapterError(f"adapters: rows are {tuple(x.shape)}, expected [B, T, D] while several are resident. Keep the batch axis.")
        return self.index[: x.shape[0]]

    @contextmanager
    def span(self, start: int, stop: int) -> Iterator[None]:
        """Within the block whatever is computed is about the sequences [start, stop) of the batch."""
        self._span = (start, stop)
        try:
            yield
        finally:
            self._span = None

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

    def of(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, tuple[tuple[int, int], ...]]:
        """Return the op's argument for the sequences of `x`."""
        return self.a, self.b, self.scales, self.rows.of(x), self.parts


def spanning(rows: AdapterRows | None, start: int, stop: int) -> AbstractContextManager[None]:
    """Return `rows.span(start, stop)`, or nothing to enter where no adapters are stacked."""
    return nullcontext() if rows is None else rows.span(start, stop)


def with_row_norms(ops: Any, gains: Mapping[nn.Parameter, Tensor], rows: AdapterRows) -> Any:
    """Return `ops` whose add_rmsnorm takes each sequence's own weight from `gains` `[A + 1, D]`, the base's last, where a norm has them."""
    plain = ops.add_rmsnorm

    def add_rmsnorm(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float = 1e-5) -> tuple[Tensor, Tensor]:
        stacked = None if rows.is_bypassed else gains.get(weight)
        if stacked is None:
            return plain(x, residual, weight, eps)
        return plain(x, residual, stacked, eps, rows.of(x))

    return dataclasses.replace(ops, add_rmsnorm=add_rmsnorm)
