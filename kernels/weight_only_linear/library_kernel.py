"""The library's GEMM over weights widened a piece at a time, so that the wide copy stays small whatever the weight."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from .reference import check_weight

# 4 Mi values: every projection of SmolLM2-135M in one piece, a head or a wide MLP in several.
MOST_VALUES = 1 << 22


def weight_only_linear(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """Contract of the reference, but scaled weights are rounded to the dtype of `x`; unscaled, their sums would overflow float16."""
    check_weight(x, weight, weight_scale)
    out_width = weight.shape[0]
    piece = max(1, MOST_VALUES // weight.shape[1])
    y = torch.empty(*x.shape[:-1], out_width, dtype=x.dtype, device=x.device)
    for start in range(0, out_width, piece):
        part = slice(start, start + piece)
        wide = (weight[part] * weight_scale[part, None]).to(x.dtype)
        y[..., part] = linear(x, wide, None if bias is None else bias[part])
    return y
