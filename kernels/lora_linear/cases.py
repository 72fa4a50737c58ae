"""Inputs on which every lora_linear backend must agree with the reference."""

from __future__ import annotations

import torch


def cases(device: str, dtype: torch.dtype) -> list[dict]:
    """Return keyword arguments: no path, one path over all rows, two paths of a fused weight with a gap, odd sizes, a bias, scale != 1."""

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=device).to(dtype) / shape[-1] ** 0.5

    plain = {"x": normal(3, 64), "weight": normal(96, 64), "bias": None, "paths": ()}
    full = {**plain, "paths": ((normal(8, 64), normal(96, 8), 2.0, 0, 96),)}
    fused = {
        "x": normal(2, 17, 123),
        "weight": normal(95, 123),
        "bias": normal(95),
        "paths": ((normal(5, 123), normal(15, 5), 0.5, 80, 95), (normal(3, 123), normal(33, 3), 1.0, 0, 33)),
    }
    return [plain, full, fused]


def bytes_moved(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, paths: tuple) -> int:
    """Read x and every weight once, write the output once."""
    rows = x.numel() // x.shape[-1]
    weights = weight.numel() + (0 if bias is None else bias.numel()) + sum(path[0].numel() + path[1].numel() for path in paths)
    return (x.numel() + weights + rows * weight.shape[0]) * x.element_size()
