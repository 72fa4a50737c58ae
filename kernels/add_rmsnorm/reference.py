"""Residual addition followed by RMSNorm, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def add_rmsnorm(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float = 1e-5) -> tuple[Tensor, Tensor]:
    """Add `x` to the residual stream and normalise the sum (Zhang and Sennrich 2019, equation 4).

    h = x + residual;  y = round(h * rsqrt(mean(h^2) + eps)) * weight, statistics in fp32.

    Args:
        x: `[..., D]`. residual: the same shape and dtype, or None for h = x. weight: `[D]`.
    Returns:
        (y, h): both shaped like `x`, dtype of `x`; h is rounded before it is squared.
    Raises:
        ValueError: shapes disagree.
    """
    if weight.shape != x.shape[-1:] or (residual is not None and residual.shape != x.shape):
        raise ValueError(f"add_rmsnorm: weight is {tuple(weight.shape)}, expected {tuple(x.shape[-1:])} to match x {tuple(x.shape)}.")
    h = x if residual is None else x + residual
    wide = h.float()
    y = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return y.to(x.dtype) * weight, h
