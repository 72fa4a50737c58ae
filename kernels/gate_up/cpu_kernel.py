"""The first half of the MLP on a CPU: the library's product, then both halves of every row in one pass."""

from __future__ import annotations

from torch import Tensor

from ..device_cpu import linear
from ..swiglu.cpu_kernel import swiglu
from .reference import check_widths


def gate_up(x: Tensor, weight: Tensor) -> Tensor:
    """Contract of the reference."""
    check_widths(x, weight)
    y = swiglu(linear(x.reshape(-1, x.shape[-1]), weight))
    return y.view(*x.shape[:-1], y.shape[-1])
