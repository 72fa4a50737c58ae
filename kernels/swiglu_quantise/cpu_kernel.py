"""The gated activation and quantisation to int8 in C++: the activation is never in memory."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._cpu import swiglu as _swiglu
from ..device_cpu import FLOATS, with_rows
from .reference import swiglu_quantise as plain


def swiglu_quantise(gate_up: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Contract of the reference, which other types are left to."""
    if dtype != torch.int8 or gate_up.dtype not in FLOATS or gate_up.shape[-1] % 2:
        return plain(gate_up, dtype)
    rows = with_rows(gate_up.reshape(-1, gate_up.shape[-1]))
    N, F = rows.shape[0], rows.shape[1] // 2
    values, scale = torch.empty(N, F, dtype=torch.int8), torch.empty(N)
    _swiglu(rows, None, values, scale, torch.get_num_threads())
    return values.view(*gate_up.shape[:-1], F), scale.view(gate_up.shape[:-1])
