"""What a decode takes of the device's memory, computed before anything is allocated.

Weights and buffers are counted. Activations are an estimate from shapes, never held against a measured peak of any GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..contracts import ModelFacts
from ..errors import DeviceMemoryError

# Logits in flight: a guess at the worst case. The head reads this many guided rows at a time (model/head.py), in the weights' dtype and
# in fp32, and `lm_head` no more bytes for plain ones; larger top-k and top-p take more of them in 16 bits (FULL_ROWS of its backends).
HEAD_ROWS = 128
# An allowance for an allocator that rounds and splits blocks; its size is an assumption.
ROUNDING = 1.1


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of one bucket: weights (on the device already, adapters that lie beside them included), buffers (requests, events, caches),
    activations (an estimate of their peak).
    """

    rows: int
    positions: int
    weights: int
    buffers: int
    activations: int

    @property
    def needed(self) -> int:
        """Bytes that are still to be allocated."""
        return self.buffers + self.activations

    def sentence(self) -> str:
        """One line for --verbose."""
        return (
            f"memory of a batch of {self.rows} x {self.positions} positions: weights {_size(self.weights)}, "
            f"buffers {_size(self.buffers)}, activations about {_size(self.activations)}"
        )

    def check(self, free: int | None) -> None:
        """Raise DeviceMemoryError where less than `free` bytes are needed; None is not checked."""
        if free is not None and self.needed > free:
            raise DeviceMemoryError(self.refusal(free))

    def refusal(self, free: int | None = None) -> str:
        """Return the sentence for a decode that does not fit."""
        got = f"{_size(free)} free" if free is not None else "less"
        return (
            f"memory: a batch of {self.rows} x {self.positions} positions needs about {_size(self.needed)} beside the weights "
            f"({_size(self.weights)}), but the device has {got}. Reduce the batch (--batch-size), the answer (--max-new-tokens) or the "
            "precision (--dtype)."
        )


def plan_memory(
    facts: ModelFacts, *, rows: int, positions: int, answers: int, is_guided: bool, item_bytes: int, weights: int, buffers: int
) -> MemoryPlan:
    """Estimate a bucket's activations: the layer's widest moment or the head's, whichever is more, with the residual stream beside it.

    Args:
        item_bytes: of one activation (2 for 16-bit dtypes), also where weights have 8 bits. weights, buffers: bytes, counted.
    """
    N, D, F, K = rows * positions, facts.width, facts.mlp_width, facts.head_width
    q, kv = facts.query_heads * K, facts.kv_heads * K
    attention = N * (2 * (q + 2 * kv) + q)
    mlp = N * 3 * F
    stream = N * 3 * D
    layer = (stream + max(attention, mlp)) * item_bytes
    read = rows * answers * D * item_bytes * (2 if is_guided else 1)
    logits = HEAD_ROWS * facts.vocab_size * (item_bytes + 2 * 4) * (2 if is_guided else 1)
    # The hidden states of the last layer are alive while rows are gathered, not while logits are.
    peak = read + max(layer, logits)
    return MemoryPlan(rows, positions, weights, buffers, int(peak * ROUNDING))


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
