"""Grouped-query attention over a whole canvas, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None = None, is_causal: bool = False) -> Tensor:
    """Attend every query to every key (bidirectional), or to its own past (`is_causal`).

    out = softmax(q k^T / sqrt(K)) v, scores and softmax in fp32, probabilities rounded to the dtype of `v`.
    The H/G query heads that share a key head are stacked into one matrix product.

    Args:
        q: `[B, T, H, K]`. k, v: `[B, S, G, K]`, same dtype; H is a multiple of G, S >= T.
        lengths: `[B]` integers, keys at or beyond a sequence's length are ignored; None where every key counts.
        is_causal: query t sees keys up to t + S - T (the queries are the last T positions).
    Returns:
        `[B, T, H, K]`, dtype of `q`.
    Raises:
        ValueError: H is not a multiple of G, or shapes disagree.
    """
    B, T, H, K = q.shape
    S, G = k.shape[1], k.shape[2]
    if k.shape != v.shape or k.shape[0] != B or k.shape[3] != K or H % G or S < T:
        shapes = tuple(tuple(t.shape) for t in (q, k, v))
        raise ValueError(f"attention: q, k, v are {shapes}, expected [B, T, H, K] and twice [B, S, G, K] with S >= T.")
    stacked = q.view(B, T, G, H // G, K).permute(0, 2, 3, 1, 4).reshape(B, G, (H // G) * T, K)
    scores = torch.matmul(stacked * K**-0.5, k.permute(0, 2, 3, 1)).float()  # [B, G, (H/G)*T, S]
    if lengths is not None:
        beyond = torch.arange(S, device=q.device)[None] >= lengths[:, None]
        scores = scores.masked_fill(beyond[:, None, None, :], float("-inf"))
    if is_causal:
        future = torch.arange(S, device=q.device)[None] > torch.arange(T, device=q.device)[:, None] + (S - T)
        scores = scores.view(B, G, H // G, T, S).masked_fill(future, float("-inf")).view(B, G, -1, S)
    out = torch.matmul(torch.softmax(scores, dim=-1).to(v.dtype), v.permute(0, 2, 1, 3))
    return out.view(B, G, H // G, T, K).permute(0, 3, 1, 2, 4).reshape(B, T, H, K)
