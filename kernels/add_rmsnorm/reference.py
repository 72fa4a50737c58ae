"""Residual addition followed by RMSNorm, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def add_rmsnorm(
    x: Tensor, residual: Tensor | None, weight: Tensor, eps: float = 1e-5, index: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Add `x` to the residual stream and normalise the sum (Zhang and Sennrich 2019, equation 4).

    h = x + residual;  y = round(h * rsqrt(mean(h^2) + eps)) * weight, statistics in fp32.

    Args:
        x: `[..., D]`. residual: the same shape and dtype, or None for h = x. weight: `[D]`, or `[A, D]` with an index.
        index: `[M]` int64 where M divides the rows of `x`: entry m is the row of the weight for the m-th N/M rows, -1 its last.
    Returns:
        (y, h): both shaped like `x`, dtype of `x`; h is rounded before it is squared.
    Raises:
        ValueError: shapes disagree.
    """
    check_shapes(x, residual, weight, index)
    h = x if residual is None else x + residual
    wide = h.float()
    y = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    if index is None:
        return y.to(x.dtype) * weight, h
    return (y.to(x.dtype).view(index.shape[0], -1, x.shape[-1]) * weight[index][:, None]).view(x.shape), h


def check_shapes(x: Tensor, residual: Tensor | None, weight: Tensor, index: Tensor | None) -> None:
    """Raise ValueError where weight, residual or index do not fit `x`."""
    is_fitting = weight.shape == x.shape[-1:] if index is None else weight.ndim == 2 and weight.shape[1] == x.shape[-1]
    if not is_fitting or (residual is not None and residual.shape != x.shape):
        wanted = tuple(x.shape[-1:]) if index is None else f"[A, {x.shape[-1]}]"
        raise ValueError(f"add_rmsnorm: weight is {tuple(weight.shape)}, expected {wanted} to match x {tuple(x.shape)}.")
    rows = x.numel() // max(x.shape[-1], 1)
    if index is not None and (index.ndim != 1 or not index.numel() or rows % index.numel()):
        raise ValueError(f"add_rmsnorm: index is {tuple(index.shape)}, expected [M] with M a divisor of the {rows} rows of x.")
