"""Renoise in C++: one pass draws the keys of a row, one partial selection finds the largest."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._cpu import renoise as _renoise
from ..random.reference import RENOISE


def renoise(
    tokens: Tensor, eligible: Tensor, weight: Tensor, count: Tensor, seeds: Tensor, step: Tensor, mask_id: int, purpose: int = RENOISE
) -> Tensor:
    """Contract of the reference; CPU tensors, rows may be strided."""
    out = torch.empty(tokens.shape, dtype=torch.int64)
    _renoise(tokens, eligible, weight, count, seeds, step, mask_id, purpose, out)
    return out
