"""Inputs on which every rmsnorm_quantise backend must agree with the reference."""

from __future__ import annotations

import torch

from ..add_rmsnorm.cases import cases as norm_cases
from ..quantise_rows.reference import LIMITS


def cases(device: str, dtype: torch.dtype) -> list[dict]:
    """Return the cases of add_rmsnorm that have one weight, each for both 8-bit types."""
    plain = [case for case in norm_cases(device, dtype) if "index" not in case]
    return [{**case, "dtype": narrow} for case in plain for narrow in LIMITS]


def bytes_moved(x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, **_: object) -> int:
    """Read x, residual and weight, write h where it is new, one byte per value and four per row."""
    wide = x.numel() * (3 if residual is not None else 1) + weight.numel()
    return wide * x.element_size() + x.numel() + x.numel() // x.shape[-1] * 4
