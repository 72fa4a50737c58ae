"""Inputs on which every add_rmsnorm backend must agree with the reference."""

from __future__ import annotations

import torch


def cases(device: str, dtype: torch.dtype) -> list[dict]:
    """Return keyword arguments: smallest, odd, model width, no residual, a slice of wider rows, inputs so small that eps
    matters, and a weight for every sequence."""
    out = []
    for rows, D in ((1, 1), (5, 123), (7, 576), (3, 2048)):
        x, residual = (torch.randn(rows, D, device=device).to(dtype) for _ in range(2))
        out.append({"x": x, "residual": residual, "weight": torch.randn(D, device=device).to(dtype), "eps": 1e-5})
    model = out[2]
    out.append({**model, "residual": None})
    out.append({**model, "x": torch.randn(7, 640, device=device).to(dtype)[:, :576]})
    weights, index = torch.randn(3, 123, device=device).to(dtype), torch.tensor([1, -1, 0], device=device)
    out.append({"x": torch.randn(3, 4, 123, device=device).to(dtype), "residual": None, "weight": weights, "index": index})
    out.append({**model, "x": model["x"] * 3e-3, "residual": model["residual"] * 3e-3, "eps": 1e-4})
    return out


def bytes_moved(x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, **_: object) -> int:
    """Read x, residual and weight, write y and h."""
    return x.numel() * x.element_size() * (4 if residual is not None else 3) + weight.numel() * weight.element_size()
