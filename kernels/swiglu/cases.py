"""Inputs on which every swiglu backend must agree with the reference."""

from __future__ import annotations

import torch


def cases(device: str, dtype: torch.dtype) -> list[dict]:
    """Return keyword arguments: smallest, odd, model width, and values far enough out that the sigmoid saturates."""
    out = [{"gate_up": torch.randn(rows, 2 * F, device=device).to(dtype)} for rows, F in ((1, 1), (5, 123), (96, 1536))]
    out.append({"gate_up": (torch.randn(7, 256, device=device) * 30).to(dtype)})
    return out


def bytes_moved(gate_up: torch.Tensor) -> int:
    """Read gate and up, write one half as much."""
    return gate_up.numel() * gate_up.element_size() * 3 // 2
