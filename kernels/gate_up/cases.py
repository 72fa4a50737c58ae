"""Inputs on which every gate_up backend must agree with the reference."""

from __future__ import annotations

import torch


def cases(device: str, dtype: torch.dtype) -> list[dict]:
    """Return keyword arguments: smallest, odd, model width, several dimensions, strided rows, and gates far enough out to saturate."""

    def normal(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return (torch.randn(*shape, device=device) * scale).to(dtype)

    smallest = {"x": normal(1, 16), "weight": normal(2, 16)}
    odd = {"x": normal(5, 144), "weight": normal(2 * 123, 144, scale=144**-0.5)}
    model = {"x": normal(2, 35, 192), "weight": normal(2 * 256, 192, scale=192**-0.5)}
    strided = {**odd, "x": normal(7, 160)[:, :144]}
    saturated = {"x": normal(3, 64, scale=4.0), "weight": normal(2 * 40, 64)}
    return [smallest, odd, model, strided, saturated]


def bytes_moved(x: torch.Tensor, weight: torch.Tensor) -> int:
    """Read x and the weight once, write the output once."""
    rows = x.numel() // x.shape[-1]
    return (x.numel() + weight.numel() + rows * weight.shape[0] // 2) * x.element_size()


def shape(x: torch.Tensor, weight: torch.Tensor) -> tuple[dict, dict]:
    """Return what a measured table knows a call by."""
    model = {"D": weight.shape[1], "F": weight.shape[0] // 2, "dtype": str(x.dtype).removeprefix("torch.")}
    return model, {"rows": x.numel() // x.shape[-1]}
