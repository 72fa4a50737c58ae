"""Residual addition and RMSNorm in C++: one pass for the sum and its square, one for the scaled row, which is still in the cache."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._cpu import add_rmsnorm as _add_rmsnorm
from ..device_cpu import FLOATS, flat
from .reference import add_rmsnorm as plain
from .reference import check_shapes


def add_rmsnorm(
    x: Tensor, residual: Tensor | None, weight: Tensor, eps: float = 1e-5, index: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Contract of the reference; norms chosen by an index, and mixed or other dtypes, are left to it."""
    check_shapes(x, residual, weight, index)
    if index is not None or x.dtype not in FLOATS or weight.dtype != x.dtype or (residual is not None and residual.dtype != x.dtype):
        return plain(x, residual, weight, eps, index)
    rows = flat(x)
    y = torch.empty_like(rows)
    h = None if residual is None else torch.empty_like(rows)
    added = None if residual is None else flat(residual)
    _add_rmsnorm(rows, added, weight.contiguous(), eps, h, y, None, None, torch.get_num_threads())
    return y.view(x.shape), x if h is None else h.view(x.shape)
