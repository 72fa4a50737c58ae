"""A linear layer on a CPU: the library's product, in fp32 where the processor has none in bfloat16."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..device_cpu import linear, multiplies_bfloat16
from .reference import LowRankPath, LowRankStack
from .reference import lora_linear as plain


def lora_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, paths: Sequence[LowRankPath] = (), stack: LowRankStack | None = None
) -> Tensor:
    """Contract of the reference, which everything but widened products without adapters is left to."""
    if paths or stack is not None or not x.dtype == weight.dtype == torch.bfloat16 or multiplies_bfloat16():
        return plain(x, weight, bias, paths, stack)
    return linear(x.reshape(-1, x.shape[-1]), weight, bias).view(*x.shape[:-1], weight.shape[0])
