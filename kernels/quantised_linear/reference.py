"""A linear layer over rows and weights quantised to 8 bits, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def quantised_linear(x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Multiply the numbers, then apply the scale of each row of `x` and of each row of `weight`.

    y = round((x W^T) * x_scale * weight_scale + bias), everything before the one rounding in fp32.

    Args:
        x: `[..., in]`, int8 or float8_e4m3fn; x_scale: `[...]` fp32. weight: `[out, in]` of the same type; weight_scale: `[out]` fp32.
        bias: `[out]` or None. dtype: of the result.
    Returns:
        `[..., out]` of `dtype`.
    Raises:
        ValueError: types or shapes do not belong together.
    """
    check_operands(x, x_scale, weight, weight_scale)
    y = torch.nn.functional.linear(x.float(), weight.float()) * x_scale[..., None] * weight_scale
    return (y if bias is None else y + bias.float()).to(dtype)


def check_operands(x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor) -> None:
    """Raise ValueError where a scale is missing or the two sides differ in type or width."""
    if x.dtype != weight.dtype or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"quantised_linear: x is {x.dtype} {tuple(x.shape)}, expected {weight.dtype} with rows of {weight.shape[1]} to match weight."
        )
    if x_scale.shape != x.shape[:-1] or weight_scale.shape != weight.shape[:1]:
        raise ValueError(
            f"quantised_linear: scales are {tuple(x_scale.shape)} and {tuple(weight_scale.shape)}, expected one per row: "
            f"{tuple(x.shape[:-1])} and {tuple(weight.shape[:1])}."
        )
