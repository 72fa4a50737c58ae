"""The MLP's first half in two steps: the library's GEMM, then the swiglu kernel over its output."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import linear

from ..swiglu.reference import swiglu as plain_swiglu
from .reference import check_widths

try:
    from ..swiglu.triton_kernel import swiglu as gpu_swiglu
except ImportError:
    gpu_swiglu = plain_swiglu


def gate_up(x: Tensor, weight: Tensor) -> Tensor:
    """Contract of the reference; gate and up stand in memory once."""
    check_widths(x, weight)
    swiglu = gpu_swiglu if x.is_cuda else plain_swiglu
    return swiglu(linear(x, weight))
