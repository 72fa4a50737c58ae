"""Rotary position embedding in the half-split layout, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair (x_i, x_{i + K/2}) by its position's angle (Su et al. 2021, equation 34, Llama's half-split layout).

    y_i = x_i cos - x_{i+K/2} sin;  y_{i+K/2} = x_{i+K/2} cos + x_i sin, in fp32, rounded once.

    Args:
        x: `[B, T, N, K]`, N heads of any kind. cos, sin: `[T, K/2]` fp32.
    Returns:
        `[B, T, N, K]`, dtype of `x`.
    Raises:
        ValueError: the tables do not match x.
    """
    T, K = x.shape[1], x.shape[3]
    if cos.shape != (T, K // 2) or sin.shape != cos.shape:
        raise ValueError(f"rotary: cos is {tuple(cos.shape)}, expected {(T, K // 2)} to match x {tuple(x.shape)}.")
    first, second = x.float().chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
