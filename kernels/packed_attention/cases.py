"""Inputs on which every packed_attention backend must agree with the reference."""

from __future__ import annotations

import torch

SHAPES = {  # B, T, H, G, K
    "smallest": (1, 1, 1, 1, 64),
    "odd": (2, 123, 3, 1, 64),
    "smollm2": (1, 40, 9, 3, 64),
    "wide_head": (1, 17, 8, 1, 128),
    "between": (2, 70, 1, 1, 96),
}


def cases(device: str, dtype: torch.dtype) -> list[dict]:
    """Return keyword arguments: smallest, odd, model widths, lengths, other angles, and a projection that is a slice itself."""
    out = []
    for B, T, H, G, K in SHAPES.values():
        qkv = torch.randn(B, T, H + 2 * G, K, device=device).to(dtype)
        cos, sin = _tables(T, K, 10000.0)
        out.append({"qkv": qkv, "cos": cos.to(device), "sin": sin.to(device), "query_heads": H, "kv_heads": G})
    odd, model, between = out[1], out[2], out[4]
    out.append({**odd, "lengths": torch.tensor([123, 7], device=device)})
    out.append({**between, "lengths": torch.tensor([64, 70], device=device)})
    cos, sin = _tables(40, 64, 3.0)
    out.append({**model, "cos": cos.to(device), "sin": sin.to(device)})
    # Tables and a projection that are slices of longer ones.
    cos, sin = _tables(200, 64, 10000.0)
    wider = torch.randn(1, 40, 17, 64, device=device).to(dtype)[:, :, 1:16]
    out.append({**model, "qkv": wider, "cos": cos.to(device)[50:90], "sin": sin.to(device)[50:90]})
    return out


def bytes_moved(
    qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, query_heads: int, kv_heads: int, lengths: torch.Tensor | None = None
) -> int:
    """Read the projection and both tables once, write the queries' share of it."""
    written = qkv.numel() * query_heads // (query_heads + 2 * kv_heads)
    return (qkv.numel() + written) * qkv.element_size() + 2 * cos.numel() * cos.element_size()


def shape(
    qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, query_heads: int, kv_heads: int, lengths: torch.Tensor | None = None
) -> tuple[dict, dict]:
    """Return what a measured table knows a call by; with lengths a library needs a mask, and is another competitor."""
    dtype = str(qkv.dtype).removeprefix("torch.")
    model = {"H": query_heads, "G": kv_heads, "K": qkv.shape[3], "dtype": dtype, "lengths": "none" if lengths is None else "given"}
    return model, {"B": qkv.shape[0], "T": qkv.shape[1]}


def _tables(T: int, K: int, base: float) -> tuple[torch.Tensor, torch.Tensor]:
    angle = torch.arange(T)[:, None] * base ** (-torch.arange(K // 2) / (K / 2))
    return angle.cos(), angle.sin()
