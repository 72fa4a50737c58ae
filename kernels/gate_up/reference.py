"""The first half of the MLP: gate and up projections and the gated activation, in plain PyTorch."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import linear

from ..swiglu.reference import swiglu


def gate_up(x: Tensor, weight: Tensor) -> Tensor:
    """Project to gate and up and multiply the SiLU of one with the other (Shazeer 2020, equation 6).

    y = swiglu(x W^T), W the gate rows above the up rows; both products and the SiLU are rounded to the dtype of `x`.

    Args:
        x: `[..., D]`. weight: `[2F, D]`, same dtype, rows contiguous.
    Returns:
        `[..., F]`, dtype of `x`.
    Raises:
        ValueError: the widths do not match, or the number of rows is odd.
    """
    check_widths(x, weight)
    return swiglu(linear(x, weight))


def check_widths(x: Tensor, weight: Tensor) -> None:
    """Raise ValueError where x and the weight do not fit each other."""
    if weight.ndim != 2 or weight.shape[0] % 2 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"gate_up: weight is {tuple(weight.shape)}, expected (2F, {x.shape[-1]}) to match x {tuple(x.shape)}.")
