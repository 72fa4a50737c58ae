"""Inputs on which every decode_attention backend must agree with the reference."""

from __future__ import annotations

import torch

SHAPES = {  # positions, C, H, G, K
    "smallest": ((0,), 1, 1, 1, 16),
    "odd": ((122, 0, 57), 123, 6, 2, 64),
    "smollm2": ((200,), 256, 9, 3, 64),
    "wide_head": ((70, 69), 71, 4, 1, 128),
    "between": ((33,), 40, 2, 2, 96),
    "long": ((1100, 3), 1200, 2, 1, 64),
}


def cases(device: str, dtype: torch.dtype) -> list[dict]:
    """Return keyword arguments: smallest, odd, model width, first and last slot, many blocks of keys, caches that are slices, and
    queries alone, with as many heads and with twice as many."""
    out = []
    for positions, C, H, G, K in SHAPES.values():
        B = len(positions)
        angles = torch.arange(C, device=device)[:, None] * 100.0 ** -torch.linspace(0, 1, K // 2, device=device)
        qkv, keys, values = (torch.randn(*shape, device=device).to(dtype) for shape in ((B, H + 2 * G, K), (B, C, G, K), (B, C, G, K)))
        at = torch.tensor(positions, device=device)
        out.append({"qkv": qkv, "keys": keys, "values": values, "positions": at, "cos": angles.cos(), "sin": angles.sin()})
    packed = torch.randn(1, 3 * 15, 64, device=device).to(dtype)
    out.append({**out[2], "qkv": packed[:, 15:30]})
    out += [{**out[1], "qkv": out[1]["qkv"][:, :6], "queries_alone": True}, {**out[2], "qkv": packed[:, :18], "queries_alone": True}]
    return out


def bytes_moved(qkv: torch.Tensor, keys: torch.Tensor, positions: torch.Tensor, **_: object) -> int:
    """Read every cached key and value once, read qkv, write the output and one key and value per sequence."""
    B, N, K = qkv.shape
    row = keys.shape[2] * K
    return (2 * row * (int(positions.sum()) + B) + B * (2 * N * K - 2 * row)) * qkv.element_size()
