"""Normal numbers in C++: sixteen calls of the generator at a time, their series in the processor's own vectors."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._cpu import gaussian_noise as _gaussian_noise
from .reference import check


def gaussian_noise(seeds: Tensor, positions: Tensor, steps: Tensor, purpose: int, count: int) -> Tensor:
    """Contract of the reference; CPU tensors."""
    check(seeds, positions, steps)
    out = torch.empty(seeds.shape[0], count)
    _gaussian_noise(seeds, positions, steps, purpose, out, torch.get_num_threads())
    return out
