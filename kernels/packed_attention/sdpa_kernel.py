"""Packed attention in two steps: the rotary kernel on queries and keys at once, then the library's fused attention."""

from __future__ import annotations

from torch import Tensor

from ..attention.sdpa_kernel import attention
from ..rotary.reference import rotary as plain_rotary
from .reference import check_packed

try:
    from ..rotary.triton_kernel import rotary as gpu_rotary
except ImportError:
    gpu_rotary = plain_rotary


def packed_attention(qkv: Tensor, cos: Tensor, sin: Tensor, query_heads: int, kv_heads: int, lengths: Tensor | None = None) -> Tensor:
    """Contract of the reference; with `lengths` the library needs a `[B, 1, 1, T]` mask, which takes launches of its own."""
    check_packed(qkv, cos, sin, query_heads, kv_heads)
    rotary = gpu_rotary if qkv.is_cuda else plain_rotary
    positional, v = qkv.split((query_heads + kv_heads, kv_heads), dim=2)
    q, k = rotary(positional, cos, sin).split((query_heads, kv_heads), dim=2)
    return attention(q, k, v, lengths)
