"""Attention through PyTorch's own fused kernels: flash attention on CPU, cuDNN or FlashAttention on a GPU; no `[T, S]` scores are kept."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

PREFERENCE = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def attention(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None = None, is_causal: bool = False) -> Tensor:
    """Contract of the reference; a mask is only built where sequences end early or a cache precedes the queries."""
    T, S = q.shape[1], k.shape[1]
    if k.shape != v.shape or q.shape[2] % k.shape[2] or S < T:
        shapes = tuple(tuple(t.shape) for t in (q, k, v))
        raise ValueError(f"attention: q, k, v are {shapes}, expected [B, T, H, K] and twice [B, S, G, K] with S >= T.")
    # One query sees its whole past; a causal square needs no mask tensor.
    is_square = is_causal and S == T and lengths is None
    visible = None
    if is_causal and T > 1 and not is_square:
        visible = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
    if lengths is not None:
        inside = (torch.arange(S, device=q.device)[None] < lengths[:, None])[:, None, None, :]
        visible = inside if visible is None else inside & visible
    # Left alone, torch takes FlashAttention 2 on Hopper; the order counts only among the kernels that can run a shape.
    with sdpa_kernel(PREFERENCE, set_priority=True) if q.is_cuda else contextlib.nullcontext():
        out = scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=visible, is_causal=is_square, enable_gqa=True
        )
    return out.transpose(1, 2)
