"""The gated activation of the MLP and row quantisation, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from ..quantise_rows.reference import quantise_rows
from ..swiglu.reference import swiglu


def swiglu_quantise(gate_up: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Gate the MLP's activation and quantise it for the down projection.

    y = swiglu(gate_up), rounded as there;  q, scale = quantise_rows(y, dtype).

    Args:
        gate_up: `[..., 2F]`. dtype: int8 or float8_e4m3fn.
    Returns:
        (q, scale): `[..., F]` of `dtype`, and `[...]` fp32.
    Raises:
        ValueError: the last axis is odd, or dtype is another.
    """
    return quantise_rows(swiglu(gate_up), dtype)
