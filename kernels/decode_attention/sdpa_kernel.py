"""Decode attention through PyTorch's own fused attention: rotation and cache write in plain PyTorch before it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from .reference import check, rotated, store


def decode_attention(
    qkv: Tensor, keys: Tensor, values: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, queries_alone: bool = False
) -> Tensor:
    """Contract of the reference; unwritten slots must hold finite numbers (`KVCache` begins as zeros)."""
    H, G, _ = check(qkv, keys, values, positions, cos, queries_alone)
    q, k, v = rotated(qkv, positions, cos, sin, H, 0 if queries_alone else G)
    if not queries_alone:
        store(keys, values, k, v, positions)
    visible = (torch.arange(keys.shape[1], device=qkv.device)[None] <= positions[:, None])[:, None, None]
    out = scaled_dot_product_attention(q[:, :, None], keys.transpose(1, 2), values.transpose(1, 2), attn_mask=visible, enable_gqa=True)
    return out[:, :, 0]
