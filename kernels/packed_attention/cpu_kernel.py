"""Attention by matrix products: the heads that share a key are stacked, so that scores and values are one large product each."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._cpu import rotate_and_stack, softmax, unstack
from ..device_cpu import FLOATS, multiplies_bfloat16, with_rows
from .reference import check_packed
from .reference import packed_attention as plain


def packed_attention(qkv: Tensor, cos: Tensor, sin: Tensor, query_heads: int, kv_heads: int, lengths: Tensor | None = None) -> Tensor:
    """Contract of the reference; the products are fp32's where the processor has none in bfloat16."""
    check_packed(qkv, cos, sin, query_heads, kv_heads)
    B, T, _, K = qkv.shape
    H, G, threads = query_heads, kv_heads, torch.get_num_threads()
    if qkv.dtype not in FLOATS:
        return plain(qkv, cos, sin, query_heads, kv_heads, lengths)
    wide = torch.float32 if not multiplies_bfloat16() else qkv.dtype
    q = torch.empty(B, G, H // G * T, K, dtype=wide)
    k, v = torch.empty(2, B, G, T, K, dtype=wide)
    rotate_and_stack(with_rows(qkv), with_rows(cos), with_rows(sin), q, k, v, threads)
    scores = torch.matmul(q, k.transpose(2, 3))  # [B, G, H/G * T, T]
    softmax(scores, None if lengths is None else lengths.long().contiguous(), threads)
    # The queries are spent: their place takes what they found.
    torch.matmul(scores, v, out=q)
    out = torch.empty(B, T, H, K, dtype=qkv.dtype)
    unstack(q, out, threads)
    return out
