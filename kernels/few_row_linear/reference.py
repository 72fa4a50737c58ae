"""A linear layer for a handful of rows with the norm before it and the gate behind it, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from ..add_rmsnorm.reference import add_rmsnorm
from ..swiglu.reference import swiglu

MAX_ROWS = 8


def few_row_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    norm: Tensor | None = None,
    eps: float = 1e-5,
    is_gated: bool = False,
) -> tuple[Tensor, Tensor]:
    """Apply a linear layer to so few rows that reading its weight is all that takes time.

    n, h = add_rmsnorm(x, residual, norm, eps), or n = h = x without `norm`;  y = n W^T + bias;  y = swiglu(y) where `is_gated`.
    Every intermediate is rounded as those ops round it.

    Args:
        x: `[M, D]`, M at most MAX_ROWS. weight: `[O, D]`, same dtype. bias: `[O]` or None.
        residual: like `x`, added before the norm; only with `norm`. norm: `[D]` or None.
        is_gated: the first half of the weight's rows are gates, the second what they act on; O is even.
    Returns:
        (y, h): `[M, O]`, or `[M, O/2]` where gated, and the residual stream `[M, D]`, both in the dtype of `x`.
    Raises:
        ValueError: shapes disagree, there are too many rows, or a residual is given without a norm.
    """
    check(x, weight, bias, residual, norm, is_gated)
    n, h = (x, x) if norm is None else add_rmsnorm(x, residual, norm, eps)
    y = torch.nn.functional.linear(n, weight, bias)
    return swiglu(y) if is_gated else y, h


def check(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, norm: Tensor | None, is_gated: bool) -> None:
    """Raise ValueError where the arguments do not fit each other."""
    if x.ndim != 2 or weight.ndim != 2 or weight.shape[1] != x.shape[1] or weight.dtype != x.dtype:
        raise ValueError(
            f"few_row_linear: x is {tuple(x.shape)} {x.dtype} and weight {tuple(weight.shape)} {weight.dtype}, "
            "expected [M, D] and [O, D] of one dtype."
        )
    M, D = x.shape
    O = weight.shape[0]  # noqa: E741
    if M > MAX_ROWS:
        raise ValueError(f"few_row_linear: x has {M} rows, expected at most {MAX_ROWS}. Use lora_linear.")
    for name, value, shape in (("bias", bias, (O,)), ("norm", norm, (D,)), ("residual", residual, (M, D))):
        if value is not None and tuple(value.shape) != shape:
            raise ValueError(f"few_row_linear: {name} is {tuple(value.shape)}, expected {shape}.")
    if residual is not None and norm is None:
        raise ValueError("few_row_linear: a residual is given without a norm, expected both.")
    if is_gated and O % 2:
        raise ValueError(f"few_row_linear: the gated weight has {O} rows, expected an even number.")
