"""A linear layer over int8 rows on a CPU: exact sums, scaled and rounded before they leave the first-level cache.

Processors with sums of byte products (AVX-512 VNNI) run our kernel, which lays the weight out as it reads it; the others run the library's,
whose sums are the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..._cpu import dequantise, multiplies_bytes
from ..._cpu import quantised_linear as _quantised_linear
from ..device_cpu import FLOATS
from .library_kernel import quantised_linear as library
from .reference import check_operands

# The library's sums that are made before they are scaled: 4 MB.
MOST_VALUES = 1 << 20


def quantised_linear(x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Contract of the reference; other 8-bit types and other results are left to the library. int8 sums are exact: a row has the same bits
    in any batch."""
    if x.dtype != torch.int8 or dtype not in FLOATS:
        return library(x, x_scale, weight, weight_scale, bias, dtype)
    check_operands(x, x_scale, weight, weight_scale)
    rows, threads = x.reshape(-1, x.shape[-1]).contiguous(), torch.get_num_threads()
    N, width = rows.shape[0], weight.shape[0]
    row_scale, columns = x_scale.reshape(-1).contiguous(), weight_scale.contiguous()
    added = None if bias is None else bias.float().contiguous()
    y = torch.empty(N, width, dtype=dtype)
    if multiplies_bytes():
        _quantised_linear(rows, row_scale, weight.contiguous(), columns, added, y, threads)
        return y.view(*x.shape[:-1], width)
    step = max(64, MOST_VALUES // max(N, 1))
    for start in range(0, width, step):
        part = slice(start, min(start + step, width))
        sums = torch._int_mm(rows, weight[part].t())
        dequantise(sums, row_scale, columns[part], None if added is None else added[part], y[:, part], threads)
    return y.view(*x.shape[:-1], width)
