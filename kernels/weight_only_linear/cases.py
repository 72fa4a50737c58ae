"""Inputs on which every weight_only_linear backend must agree with the reference."""

from __future__ import annotations

import torch

from ..quantise_rows.reference import quantise_rows


def cases(device: str, dtype: torch.dtype) -> list[dict]:
    """Return keyword arguments: smallest, odd with a bias, a slice of wider rows, model width, and rows no tile divides."""
    out = []
    for shape, width, rows, has_bias in (((1,), 1, 1, False), ((2, 7), 123, 35, True), ((17,), 576, 64, True), ((3,), 64, 301, False)):
        weight, weight_scale = quantise_rows(torch.randn(rows, width, device=device) / width**0.5, torch.int8)
        bias = torch.randn(rows, device=device).to(dtype) if has_bias else None
        x = torch.randn(*shape, width, device=device).to(dtype)
        out.append({"x": x, "weight": weight, "weight_scale": weight_scale, "bias": bias})
    wide = torch.randn(17, 640, device=device).to(dtype)
    return [*out, {**out[2], "x": wide[:, :576]}]


def bytes_moved(x: torch.Tensor, weight: torch.Tensor, weight_scale: torch.Tensor, bias: torch.Tensor | None = None) -> int:
    """Read x, the narrow weight and its scales once, write the output once."""
    rows = x.numel() // x.shape[-1]
    wide = x.numel() + (0 if bias is None else bias.numel()) + rows * weight.shape[0]
    return wide * x.element_size() + weight.numel() + 4 * weight_scale.numel()
