"""Training noise in C++: one walk per example, in the order the reference describes."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._cpu import structured_noise as _structured_noise
from .reference import VARIANTS, check


def structured_noise(
    ids: Tensor,
    answer_start: Tensor,
    lengths: Tensor,
    seeds: Tensor,
    step: Tensor,
    mask_id: int,
    variant: str,
    fixed_level: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Contract of the reference; CPU tensors."""
    check(ids, answer_start, lengths, seeds, variant)
    rows = ids if ids.shape[1] <= 1 or ids.stride(1) == 1 else ids.contiguous()
    out, level = torch.empty(ids.shape, dtype=torch.int64), torch.empty(ids.shape[0])
    _structured_noise(
        rows, answer_start, lengths, seeds, step, mask_id, VARIANTS.index(variant), fixed_level, out, level, torch.get_num_threads()
    )
    return out, level
