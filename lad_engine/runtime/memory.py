"""What a decode takes of the device's memory, computed before anything is allocated.

Weights, buffers and caches are counted to the byte. Activations are bounded from shapes: tests/runtime/test_memory_plan.py holds the bound
against traces of captured steps, of every family and precision, on the GPU's own backends.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..contracts import ModelFacts
from ..errors import DeviceMemoryError

# An allowance for an allocator that rounds and splits blocks; its size is an assumption.
ROUNDING = 1.1
# What cuBLAS and cuBLASLt take for themselves on Hopper, 32 MiB each as torch sets them; elsewhere less.
LIBRARY_BYTES = 64 << 20
# Up to this many candidates (the op's own limit, a test compares them) a head over plain weights keeps, whichever backend a table chooses,
# either a chunk of logits that stays in a GPU's L2, or that many keys and a mass per row and TILE logits.
FEW_CANDIDATES, CHUNK_BYTES, TILE = 8, 18_000_000, 128
KEY_BYTES = 8 * FEW_CANDIDATES + 4
# Values of an int8 product that exist in 32 bits at a time (compared likewise), and the bytes of each: sum, scaled copy, result.
PRODUCT_VALUES, PRODUCT_BYTES = 1 << 25, 10


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of one bucket: weights (on the device already, adapters that lie beside them included), buffers (requests, events, caches),
    activations (a bound on their peak, libraries' own memory included).
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


@dataclass(frozen=True)
class HeadUse:
    """What a step makes of its logits.

    is_guided: combined with those of unconditional rows. has_certainty: how sure each row is, beside its token. is_soft: the mean embedding
    of what was predicted. needs_rows: whole rows at once (a draw over all tokens, top-p alone, more than FEW_CANDIDATES). is_plain: logits
    are rows times one matrix of their dtype, with no low-rank path beside it.
    """

    is_guided: bool = False
    has_certainty: bool = False
    is_soft: bool = False
    needs_rows: bool = False
    is_plain: bool = True

    def nbytes(self, count: int, vocabulary: int, item_bytes: int) -> int:
        """Bound the logits of `count` rows and what is made of them.

        Rows that are taken at once, and bytes per logit with everything computed from it and the chunk before, are those of the code:
        `Head.choose` and `SimplexModel.choose` for what is not plain, the op `lm_head` for what is.
        """
        if self.is_soft:
            return min(count, 512) * vocabulary * (3 * item_bytes if self.is_plain else 13)
        if self.has_certainty:
            return min(count, 128) * vocabulary * 50
        if self.is_guided:
            return min(count, 128) * vocabulary * 21
        if not self.is_plain:
            return min(count, 128) * vocabulary * 15
        if self.needs_rows:
            return min(count, 256) * vocabulary * 2 * item_bytes + CHUNK_BYTES
        return max(CHUNK_BYTES, count * -(-vocabulary // TILE) * KEY_BYTES)


def plan_memory(
    facts: ModelFacts,
    *,
    rows: int,
    positions: int,
    answers: int,
    item_bytes: int,
    weights: int,
    buffers: int,
    head: HeadUse | None = None,
    precision: str = "auto",
    has_wide_paths: bool = False,
    library: int = 0,
) -> MemoryPlan:
    """Bound a bucket's activations: the layer's widest moment or the head's, whichever is more, beside the rows that are read.

    Args:
        item_bytes: of one activation (2 for 16-bit dtypes), also where weights have 8 bits. weights, buffers: bytes, counted.
        head: what is made of the logits; None is a choice among few candidates. precision: as EngineConfig has it.
        has_wide_paths: low-rank paths lie beside gate and up. library: bytes that GEMM libraries take (LIBRARY_BYTES), 0 on a CPU.
    """
    head = head or HeadUse()
    N, D, F, K = rows * positions, facts.width, facts.mlp_width, facts.head_width
    q, kv = facts.query_heads * K, facts.kv_heads * K
    # Its input and residual, which the caller holds too, and both of its own; then attention with its output, or the MLP.
    stream = 4 * D + (2 * D if head.is_soft else 0)
    attention = q + 2 * kv + max(q + kv, q + D)
    # Gate and up with their product; or with what paths add to each, and the whole they are put together to.
    mlp = (6 if has_wide_paths else 3) * F
    layer = N * (stream + max(attention, mlp)) * item_bytes
    if precision == "int8":
        layer += PRODUCT_BYTES * min(N * 2 * F, PRODUCT_VALUES)
    # The hidden states of the last layer are alive while rows are gathered, not while logits are.
    read = rows * answers * D * item_bytes * (3 if head.is_guided or head.is_soft else 2)
    peak = max(layer + read // 2, read + head.nbytes(rows * answers, facts.vocab_size, item_bytes))
    return MemoryPlan(rows, positions, weights, buffers, int(peak * ROUNDING) + library)


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
