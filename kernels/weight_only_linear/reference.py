"""A linear layer whose weights alone are quantised, in plain PyTorch."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import linear


def weight_only_linear(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply rows in their own precision with int8 weights, which are widened as they are read.

    y = round((x W^T) * weight_scale + bias), everything before the one rounding in fp32.

    Args:
        x: `[..., in]`. weight: `[out, in]` int8. weight_scale: `[out]` fp32. bias: `[out]` or None.
    Returns:
        `[..., out]`, dtype of `x`.
    Raises:
        ValueError: shapes or types do not belong together.
    """
    check_weight(x, weight, weight_scale)
    y = linear(x.float(), weight.float()) * weight_scale
    return (y if bias is None else y + bias.float()).to(x.dtype)


def check_weight(x: Tensor, weight: Tensor, weight_scale: Tensor) -> None:
    """Raise ValueError where the weight is not 8 bits wide or does not fit `x` or its scales."""
    if weight.element_size() != 1 or x.shape[-1] != weight.shape[1] or weight_scale.shape != weight.shape[:1]:
        raise ValueError(
            f"weight_only_linear: weight is {weight.dtype} {tuple(weight.shape)} with {tuple(weight_scale.shape)} scales, expected "
            f"8 bits, rows of {x.shape[-1]} to match x, and one scale per row."
        )
