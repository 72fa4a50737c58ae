"""The library's GEMM for the weight, and for a stack two small kernels beside it: x A^T, then B added in place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import reference
from .reference import LowRankPath, LowRankStack, check_stack
from .triton_kernel import expand_, shrink


def lora_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, paths: Sequence[LowRankPath] = (), stack: LowRankStack | None = None
) -> Tensor:
    """Contract of the reference; a stack has no backward pass here."""
    if stack is None:
        return reference.lora_linear(x, weight, bias, paths)
    check_stack(x, weight, paths, stack)
    a, b, scales, index, parts = stack
    rows = x.reshape(-1, x.shape[-1])
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    y = torch.nn.functional.linear(rows, weight, bias)
    if y.numel():
        expand_(y, shrink(rows, a, scales, index), b, index, parts)
    return y.view(*x.shape[:-1], weight.shape[0])
