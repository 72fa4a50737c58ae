"""Inputs on which every swiglu_quantise backend must agree with the reference."""

from __future__ import annotations

import torch

from ..quantise_rows.reference import LIMITS
from ..swiglu.cases import cases as swiglu_cases


def cases(device: str, dtype: torch.dtype) -> list[dict]:
    """Return the cases of swiglu, at most 16 rows of each, for both 8-bit types."""
    return [{"gate_up": case["gate_up"][:16], "dtype": narrow} for case in swiglu_cases(device, dtype) for narrow in LIMITS]


def bytes_moved(gate_up: torch.Tensor, dtype: torch.dtype) -> int:
    """Read gate and up, write one byte per pair and four per row."""
    return gate_up.numel() * gate_up.element_size() + gate_up.numel() // 2 + gate_up.numel() // gate_up.shape[-1] * 4
