"""Inputs on which every rotary backend must agree with the reference."""

from __future__ import annotations

import torch


def cases(device: str, dtype: torch.dtype) -> list[dict]:
    """Return keyword arguments: smallest, odd, model width, and a strided slice of a packed projection."""
    out = []
    for B, T, N, K in ((1, 1, 1, 2), (2, 123, 3, 64), (1, 96, 12, 64), (1, 17, 8, 128)):
        angle = torch.arange(T)[:, None] * 10000.0 ** (-torch.arange(K // 2) / (K / 2))
        x = torch.randn(B, T, N, K, device=device).to(dtype)
        out.append({"x": x, "cos": angle.cos().to(device), "sin": angle.sin().to(device)})
    packed = torch.randn(1, 96, 15, 64, device=device).to(dtype)
    out.append({**out[2], "x": packed[:, :, :12]})
    return out


def bytes_moved(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> int:
    """Read and write x, read both tables."""
    return 2 * x.numel() * x.element_size() + 2 * cos.numel() * cos.element_size()
