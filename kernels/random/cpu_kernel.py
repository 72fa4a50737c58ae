"""Philox4x32-10 in C++: a dozen integer operations per round in registers instead of as many passes over memory."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._cpu import uniform as _uniform


def uniform(seeds: Tensor, positions: Tensor, step: Tensor, purpose: int) -> Tensor:
    """Contract of the reference; CPU tensors."""
    out = torch.empty((*seeds.shape, *positions.shape), dtype=torch.float32)
    _uniform(seeds, positions, step, purpose, out)
    return out
