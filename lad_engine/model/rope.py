"""Rotary tables of a checkpoint, computed once in fp32 on the host."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..contracts import ModelFacts


def rope_tables(facts: ModelFacts) -> tuple[Tensor, Tensor]:
    """Return cos and sin, each `[max_positions, K/2]` fp32 (Su et al. 2021; Llama 3.1's frequency scaling where the facts ask for it)."""
    rope, K = facts.rope, facts.head_width
    frequency = 1.0 / (rope.theta ** (torch.arange(0, K, 2, dtype=torch.int64).float() / K))
    if rope.kind == "linear":
        frequency = frequency / rope.factor
    elif rope.kind == "llama3":
        wavelength = 2 * math.pi / frequency
        # Long waves are slowed by `factor`, short ones kept, the band between blended linearly in original_max_positions / wavelength.
        share = (rope.original_max_positions / wavelength - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
        share = share.clamp(0.0, 1.0)
        frequency = (1 - share) * frequency / rope.factor + share * frequency
    angle = torch.arange(facts.max_positions).float()[:, None] * frequency
    return angle.cos(), angle.sin()
