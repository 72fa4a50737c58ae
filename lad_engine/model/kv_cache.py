"""Keys and values of the positions already seen, for causal decoding."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from ..contracts import ModelFacts


class KVCache:
    """Preallocated storage, `[layers, B, capacity, G, K]` for keys and for values, with one position per sequence.

    positions: `[B]` int64 on the device, tokens cached of each sequence; a decode step writes there and reads up to there, so
    sequences of different lengths stand left-aligned in one batch. length: positions a causal forward of whole canvases has
    filled, on the host. Unwritten slots hold zeros: masked or not, they are finite.
    """

    def __init__(self, facts: ModelFacts, batch: int, capacity: int, dtype: torch.dtype, device: torch.device | str) -> None:
        shape = (facts.layers, batch, capacity, facts.kv_heads, facts.head_width)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.positions = torch.zeros(batch, dtype=torch.int64, device=device)
        self.length = 0

    @property
    def capacity(self) -> int:
        """Tokens a sequence may have."""
        return self.keys.shape[2]

    def view(self, start: int, stop: int, capacity: int | None = None) -> KVCache:
        """Return the sequences [start, stop) with room for `capacity` tokens, on the same storage."""
        part = copy.copy(self)
        part.keys, part.values = (storage[:, start:stop, :capacity] for storage in (self.keys, self.values))
        part.positions = self.positions[start:stop]
        return part

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store `[B, T, G, K]` at `length` and return views of everything up to there.

        `length` itself moves once per forward pass, when the transformer has run all layers.
        """
        end = self.length + k.shape[1]
        self.keys[layer, :, self.length : end] = k
        self.values[layer, :, self.length : end] = v
        return self.keys[layer, :, :end], self.values[layer, :, :end]
