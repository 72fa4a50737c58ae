"""One new token per sequence against its cached keys and values, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def decode_attention(
    qkv: Tensor, keys: Tensor, values: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, queries_alone: bool = False
) -> Tensor:
    """Rotate the new query and key, store the new key and value at their position, and attend to everything up to there.

    q, k = rope(q, p), rope(k, p) rounded once (op `rotary`); keys[b, p_b] = k, values[b, p_b] = v;
    out = softmax(q keys[b, :p_b + 1]^T / sqrt(K)) values[b, :p_b + 1], scores and softmax in fp32.

    Args:
        qkv: `[B, H + 2G, K]`, the packed projection of one token per sequence; H is a multiple of G.
        keys, values: `[B, C, G, K]`, same dtype, written in place; what stands beyond a sequence's position is not read.
        positions: `[B]` int64 on the device, less than C: how many tokens of each sequence are cached.
        cos, sin: `[P, K/2]` fp32, P >= C.
        queries_alone: qkv is `[B, H, K]` without a new key and value: the key at a query's position is cached, and nothing is written.
    Returns:
        `[B, H, K]`, dtype of `qkv`.
    Raises:
        ValueError: shapes disagree.
    """
    H, G, K = check(qkv, keys, values, positions, cos, queries_alone)
    B, C = keys.shape[:2]
    q, k, v = rotated(qkv, positions, cos, sin, H, 0 if queries_alone else G)
    if not queries_alone:
        store(keys, values, k, v, positions)
    beyond = torch.arange(C, device=qkv.device)[None] > positions[:, None]
    stacked = q.view(B, G, H // G, K) * K**-0.5
    scores = torch.matmul(stacked, keys.permute(0, 2, 3, 1)).float()  # [B, G, H/G, C]
    scores = scores.masked_fill(beyond[:, None, None], float("-inf"))
    # Zero, not whatever an unwritten slot holds: 0 * NaN is NaN.
    seen = values.masked_fill(beyond[:, :, None, None], 0.0).permute(0, 2, 1, 3)
    return torch.matmul(torch.softmax(scores, dim=-1).to(values.dtype), seen).view(B, H, K)


def check(qkv: Tensor, keys: Tensor, values: Tensor, positions: Tensor, cos: Tensor, queries_alone: bool = False) -> tuple[int, int, int]:
    """Return (H, G, K); raise ValueError where shapes disagree."""
    (B, N, K), (batch, C, G, width) = qkv.shape, keys.shape
    H = N if queries_alone else N - 2 * G
    if (batch, width) != (B, K) or values.shape != keys.shape or H < 1 or H % G or positions.shape != (B,):
        shapes = tuple(tuple(t.shape) for t in (qkv, keys, values, positions))
        raise ValueError(
            f"decode_attention: qkv, keys, values, positions are {shapes}, expected [B, {'H' if queries_alone else 'H + 2G'}, K], "
            "twice [B, C, G, K] and [B]."
        )
    if cos.shape[0] < C or cos.shape[1] != K // 2:
        raise ValueError(f"decode_attention: cos is {tuple(cos.shape)}, expected at least {(C, K // 2)} to match keys {tuple(keys.shape)}.")
    return H, G, K


def rotated(qkv: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, H: int, G: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return q `[B, H, K]` and k `[B, G, K]`, rotated and rounded, and v `[B, G, K]`."""
    positional, v = qkv.split((H + G, G), dim=1)
    first, second = positional.float().chunk(2, dim=-1)
    cos, sin = cos[positions][:, None], sin[positions][:, None]
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(qkv.dtype)
    q, k = turned.split((H, G), dim=1)
    return q, k, v


def store(keys: Tensor, values: Tensor, k: Tensor, v: Tensor, positions: Tensor) -> None:
    """Write one row per sequence into the cache."""
    row = torch.arange(len(positions), device=positions.device)
    keys[row, positions] = k
    values[row, positions] = v
