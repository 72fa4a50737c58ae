"""Gated residual addition, RMSNorm, and a weight and shift of each row's own, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def modulated_norm(
    x: Tensor, residual: Tensor | None, gate: Tensor | None, weight: Tensor, shift: Tensor, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """Add `x` to the residual stream through a gate, normalise the sum, and modulate it (Peebles and Xie 2023, adaLN-Zero).

    h = residual + gate * x;  y = h * rsqrt(mean(h^2) + eps) * weight + shift;  fp32 throughout, h and y rounded once.

    Args:
        x: `[M, D]`. residual: like `x`, or None for h = x. gate: `[M, D]` fp32; there where a residual is.
        weight, shift: `[M, D]` fp32. A row may stand for all of them (`expand`).
    Returns:
        (y, h): both `[M, D]`, dtype of `x`; h is rounded before it is squared.
    Raises:
        ValueError: shapes disagree, or only one of residual and gate is given.
    """
    check(x, residual, gate, weight, shift)
    h = x if residual is None else (residual.float() + gate * x.float()).to(x.dtype)
    wide = h.float()
    y = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (y * weight + shift).to(x.dtype), h


def check(x: Tensor, residual: Tensor | None, gate: Tensor | None, weight: Tensor, shift: Tensor) -> None:
    """Raise ValueError where the arguments do not fit `x`."""
    if (residual is None) != (gate is None):
        raise ValueError("modulated_norm: only one of residual and gate is given, expected both or neither.")
    for name, value in (("residual", residual), ("gate", gate), ("weight", weight), ("shift", shift)):
        if value is not None and (value.shape != x.shape or x.ndim != 2):
            raise ValueError(f"modulated_norm: {name} is {tuple(value.shape)}, expected [M, D] to match x {tuple(x.shape)}.")
