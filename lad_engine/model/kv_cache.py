"""Keys and values of the positions already seen, for causal decoding."""

from __future__ import annotations

import torch
from torch import Tensor

from ..contracts import ModelFacts


class KVCache:
    """Preallocated storage, `[layers, B, capacity, G, K]` for keys and for values; `length` positions are filled."""

    def __init__(self, facts: ModelFacts, batch: int, capacity: int, dtype: torch.dtype, device: torch.device | str) -> None:
        shape = (facts.layers, batch, capacity, facts.kv_heads, facts.head_width)
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty(shape, dtype=dtype, device=device)
        self.length = 0

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store `[B, T, G, K]` at the current position and return views of everything up to there.

        The position itself moves once per forward pass, when the transformer has run all layers.
        """
        end = self.length + k.shape[1]
        self.keys[layer, :, self.length : end] = k
        self.values[layer, :, self.length : end] = v
        return self.keys[layer, :, :end], self.values[layer, :, :end]
