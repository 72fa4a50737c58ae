"""Residual addition, RMSNorm and quantisation to int8 in C++: the normalised row is never in memory."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._cpu import add_rmsnorm as _add_rmsnorm
from ..add_rmsnorm.reference import check_shapes
from ..device_cpu import FLOATS, flat
from .reference import rmsnorm_quantise as plain


def rmsnorm_quantise(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Contract of the reference, which other types are left to."""
    if dtype != torch.int8 or x.dtype not in FLOATS or weight.dtype != x.dtype or (residual is not None and residual.dtype != x.dtype):
        return plain(x, residual, weight, eps, dtype)
    check_shapes(x, residual, weight, None)
    rows = flat(x)
    values, scale = torch.empty(rows.shape, dtype=torch.int8), torch.empty(rows.shape[0])
    h = None if residual is None else torch.empty_like(rows)
    added = None if residual is None else flat(residual)
    _add_rmsnorm(rows, added, weight.contiguous(), eps, h, None, values, scale, torch.get_num_threads())
    return values.view(x.shape), scale.view(x.shape[:-1]), x if h is None else h.view(x.shape)
