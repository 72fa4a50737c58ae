"""Row quantisation to int8 in C++: the largest magnitude, then the values, while the row is in the cache."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._cpu import quantise_rows as _quantise_rows
from ..device_cpu import FLOATS, with_rows
from .reference import quantise_rows as plain


def quantise_rows(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Contract of the reference, which other types are left to."""
    if dtype != torch.int8 or x.dtype not in FLOATS:
        return plain(x, dtype)
    rows = with_rows(x.reshape(-1, x.shape[-1]))
    values, scale = torch.empty(rows.shape, dtype=torch.int8), torch.empty(rows.shape[0])
    _quantise_rows(rows, values, scale, torch.get_num_threads())
    return values.view(x.shape), scale.view(x.shape[:-1])
