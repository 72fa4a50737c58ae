"""The gated activation in C++: one pass over both halves of a row."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._cpu import swiglu as _swiglu
from ..device_cpu import FLOATS, with_rows
from .reference import swiglu as plain


def swiglu(gate_up: Tensor) -> Tensor:
    """Contract of the reference, which other dtypes are left to."""
    if gate_up.shape[-1] % 2 or gate_up.dtype not in FLOATS:
        return plain(gate_up)
    rows = with_rows(gate_up.reshape(-1, gate_up.shape[-1]))
    y = torch.empty(rows.shape[0], rows.shape[1] // 2, dtype=rows.dtype)
    _swiglu(rows, y, None, None, torch.get_num_threads())
    return y.view(*gate_up.shape[:-1], -1)
