"""Attention on a CPU: the scores of a few query rows stay in the first-level cache from one product to the other.

Where the processor multiplies bfloat16 itself, or has no fused products, the library multiplies instead: the heads that share a key are
stacked, so that scores and values are one large product each.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..._cpu import attends, attention_room, rotate_and_stack, softmax, unstack
from ..._cpu import packed_attention as _packed_attention
from ..device_cpu import FLOATS, multiplies_bfloat16, with_rows
from .reference import check_packed
from .reference import packed_attention as plain


def packed_attention(qkv: Tensor, cos: Tensor, sin: Tensor, query_heads: int, kv_heads: int, lengths: Tensor | None = None) -> Tensor:
    """Contract of the reference; the products are fp32's where the processor has none in bfloat16."""
    check_packed(qkv, cos, sin, query_heads, kv_heads)
    B, T, _, K = qkv.shape
    H, G = query_heads, kv_heads
    if qkv.dtype not in FLOATS:
        return plain(qkv, cos, sin, query_heads, kv_heads, lengths)
    threads, seen = torch.get_num_threads(), None if lengths is None else lengths.long().contiguous()
    out = torch.empty(B, T, H, K, dtype=qkv.dtype)
    if attends() and (qkv.dtype == torch.float32 or not multiplies_bfloat16()):
        room = torch.empty(B * attention_room(T, G, K))
        _packed_attention(with_rows(qkv), with_rows(cos), with_rows(sin), seen, room, out, threads)
    else:
        _by_products(with_rows(qkv), with_rows(cos), with_rows(sin), seen, out, kv_heads, threads)
    return out


def _by_products(qkv: Tensor, cos: Tensor, sin: Tensor, lengths: Tensor | None, out: Tensor, kv_heads: int, threads: int) -> None:
    """Fill `out` `[B, T, H, K]` by the library's products."""
    B, T, H, K = out.shape
    G = kv_heads
    wide = torch.float32 if not multiplies_bfloat16() else qkv.dtype
    q = torch.empty(B, G, H // G * T, K, dtype=wide)
    k, v = torch.empty(2, B, G, T, K, dtype=wide)
    rotate_and_stack(qkv, cos, sin, q, k, v, threads)
    scores = torch.matmul(q, k.transpose(2, 3))  # [B, G, H/G * T, T]
    softmax(scores, lengths, threads)
    # The queries are spent: their place takes what they found.
    torch.matmul(scores, v, out=q)
    unstack(q, out, threads)
