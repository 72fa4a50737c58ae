"""Residual addition, RMSNorm and row quantisation, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from ..add_rmsnorm.reference import add_rmsnorm
from ..quantise_rows.reference import quantise_rows


def rmsnorm_quantise(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Add `x` to the residual stream, normalise the sum and quantise it for the projection that reads it.

    h = x + residual;  y = add_rmsnorm(x, residual, weight, eps), rounded as there;  q, scale = quantise_rows(y, dtype).

    Args:
        x: `[..., D]`. residual: the same shape and dtype, or None for h = x. weight: `[D]`. dtype: int8 or float8_e4m3fn.
    Returns:
        (q, scale, h): `[..., D]` of `dtype`, `[...]` fp32, and `[..., D]` in the dtype of `x`.
    Raises:
        ValueError: shapes disagree, or dtype is another.
    """
    y, h = add_rmsnorm(x, residual, weight, eps)
    return *quantise_rows(y, dtype), h
