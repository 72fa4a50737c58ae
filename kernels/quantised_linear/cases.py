"""Inputs on which every quantised_linear backend must agree with the reference."""

from __future__ import annotations

import torch

from ..quantise_rows.reference import LIMITS, quantise_rows


def cases(device: str, dtype: torch.dtype) -> list[dict]:
    """Return keyword arguments, each for both types: sizes no library takes as they are, model width, a bias, a large head, few rows."""
    out = []
    for shape, width, rows, has_bias in (((1,), 1, 1, False), ((2, 7), 123, 35, True), ((33,), 576, 960, True), ((150,), 64, 8195, False)):
        for narrow in LIMITS:
            if narrow != torch.int8 and str(device).startswith("cuda") and torch.cuda.get_device_capability() < (8, 9):
                continue
            x, x_scale = quantise_rows(torch.randn(*shape, width, device=device), narrow)
            weight, weight_scale = quantise_rows(torch.randn(rows, width, device=device), narrow)
            bias = torch.randn(rows, device=device).to(dtype) if has_bias else None
            out.append({"x": x, "x_scale": x_scale, "weight": weight, "weight_scale": weight_scale, "bias": bias, "dtype": dtype})
    return out


def bytes_moved(x: torch.Tensor, x_scale: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype, **_: object) -> int:
    """Read both operands and their scales once, write the output once."""
    rows = x_scale.numel()
    return x.numel() + weight.numel() + 4 * (rows + weight.shape[0]) + rows * weight.shape[0] * dtype.itemsize
