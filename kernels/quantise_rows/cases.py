"""Inputs on which every quantise_rows backend must agree with the reference."""

from __future__ import annotations

import torch

from .reference import LIMITS


def cases(device: str, dtype: torch.dtype) -> list[dict]:
    """Return keyword arguments, each for both types: smallest, odd, model width, strided, ties, rows of zeros and of tiny values."""

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=device).to(dtype)

    tied = torch.arange(-508, 509, device=device).to(dtype)[None] / 4
    # The first row's scale is exactly 1, so that the quarters and halves between two numbers are met.
    ties = torch.cat((tied.clamp(-127, 127), tied.clamp(-448, 448) / 64 * 7, torch.zeros_like(tied), tied * 2.0**-14))
    inputs = [normal(1, 1), normal(5, 123), normal(2, 7, 576), normal(7, 640)[:, :576], normal(3, 2048) * 300, ties]
    return [{"x": x, "dtype": narrow} for x in inputs for narrow in LIMITS]


def bytes_moved(x: torch.Tensor, dtype: torch.dtype) -> int:
    """Read x, write one byte per value and four per row."""
    return x.numel() * (x.element_size() + 1) + x.numel() // x.shape[-1] * 4
