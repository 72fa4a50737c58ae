"""Inputs on which every soft_embedding backend must agree with the reference."""

from __future__ import annotations

import torch

from ..random.reference import SIMPLEX_NOISE


def cases(device: str, dtype: torch.dtype) -> list[dict]:
    """Return keyword arguments: smallest, odd, model width, strided, noise alone, no noise, supplied noise, logits in 16 bits."""
    out = [
        _case(device, dtype, 1, 4, 16),
        _case(device, dtype, 17, 123, 65),
        _case(device, dtype, 5, 4096, 576, shift=7.0, spread=2.0),
        _case(device, dtype, 3, 1000, 64, shift=0.0, spread=5.0),
        _case(device, dtype, 9, 300, 96, shift=10.0, spread=0.0),
    ]
    strided = _case(device, dtype, 6, 200, 64)
    strided["table"] = torch.randn(400, 80, device=device).to(dtype)[::2, :64]
    strided["previous"] = torch.randn(12, 200, device=device).to(dtype)[::2]
    alone = _case(device, dtype, 6, 250, 64)
    alone["tokens"] = torch.tensor([-1, 3, -1, 249, 0, 1], device=device)
    first = {**_case(device, dtype, 4, 300, 48, shift=0.0, spread=5.0), "previous": None}
    supplied = _case(device, dtype, 7, 130, 40)
    supplied["noise"] = torch.randn(7, 130, device=device)
    later = {**_case(device, dtype, 3, 77, 32), "steps": torch.tensor([99, 0, 2**31], device=device), "purpose": 3}
    sharp = _case(device, dtype, 3, 640, 32)
    sharp["previous"] = sharp["previous"] * 40.0
    return [*out, strided, alone, first, supplied, later, sharp]


def bytes_moved(
    table: torch.Tensor, tokens: torch.Tensor, previous: torch.Tensor | None, noise: torch.Tensor | None = None, **_: object
) -> int:
    """Read the table and the logits once, write a row each; noise is not read unless it is supplied."""
    read = sum(t.numel() * t.element_size() for t in (table, previous, noise) if t is not None)
    return read + tokens.numel() * (table.shape[1] * table.element_size() + 32)


def _case(device: str, dtype: torch.dtype, N: int, V: int, D: int, shift: float = 6.0, spread: float = 3.0) -> dict:
    return {
        "table": torch.randn(V, D, device=device).to(dtype),
        "tokens": torch.randint(0, V, (N,), device=device),
        "shift": torch.full((N,), shift, device=device),
        "spread": torch.full((N,), spread, device=device) * (torch.arange(N, device=device) % 3 + 1) / 3,
        "seeds": torch.arange(N, device=device) * (2**33 + 5) + 1,
        "positions": torch.arange(N, device=device) * 7 % 512,
        "steps": torch.full((N,), 4, device=device),
        "purpose": SIMPLEX_NOISE,
        "previous": (torch.randn(N, V, device=device) * 3).to(dtype),
    }
