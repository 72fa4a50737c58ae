"""Bidirectional attention straight from the packed projection, in plain PyTorch."""

from __future__ import annotations

from torch import Tensor

from ..attention.reference import attention
from ..rotary.reference import rotary


def packed_attention(qkv: Tensor, cos: Tensor, sin: Tensor, query_heads: int, kv_heads: int, lengths: Tensor | None = None) -> Tensor:
    """Rotate the queries and keys of a packed projection and attend every query to every key of its own sequence.

    out = attention(rotary(q), rotary(k), v, lengths), [q | k | v] = qkv by heads; rotated values are rounded to the dtype of `qkv`.

    Args:
        qkv: `[B, T, H + 2 G, K]`, the query heads first, then the keys', then the values'; last axis contiguous.
        cos, sin: `[T, K/2]` fp32, as `rotary` takes them. query_heads: H, a multiple of kv_heads: G.
        lengths: `[B]` integers of at least 1, keys at or beyond a sequence's length are ignored; None where every key counts.
            The queries there are padding: they attend to the same keys, and nobody reads what they find.
    Returns:
        `[B, T, H, K]`, dtype of `qkv`.
    Raises:
        ValueError: the heads do not add up to those of qkv, H is not a multiple of G, or the tables do not match.
    """
    check_packed(qkv, cos, sin, query_heads, kv_heads)
    positional, v = qkv.split((query_heads + kv_heads, kv_heads), dim=2)
    q, k = rotary(positional, cos, sin).split((query_heads, kv_heads), dim=2)
    return attention(q, k, v, lengths)


def check_packed(qkv: Tensor, cos: Tensor, sin: Tensor, query_heads: int, kv_heads: int) -> None:
    """Raise ValueError where the arguments of `packed_attention` do not fit each other."""
    if qkv.ndim != 4 or qkv.shape[2] != query_heads + 2 * kv_heads or query_heads % kv_heads:
        raise ValueError(
            f"packed_attention: qkv is {tuple(qkv.shape)}, expected [B, T, {query_heads} + 2 x {kv_heads}, K] with {query_heads} query "
            f"heads a multiple of {kv_heads} key heads."
        )
    table = (qkv.shape[1], qkv.shape[3] // 2)
    if cos.shape != table or sin.shape != table:
        raise ValueError(f"packed_attention: cos is {tuple(cos.shape)}, sin {tuple(sin.shape)}, expected {table} to match qkv.")
