"""The 8-bit products of PyTorch's libraries (oneDNN, cuBLASLt, CUTLASS), with what their shape limits ask for laid around them."""

from __future__ import annotations

import torch
from torch import Tensor

from .reference import check_operands

# Of rows and of widths on CUDA: `_int_mm` wants more than 16 rows and widths of 8, `_scaled_mm` widths of 16.
LEAST_ROWS, MULTIPLE = 32, 16
# On a CPU a sum larger than this is made 1024 columns at a time: 31 ms against 66 whole (128 x 49152, Xeon 2.8 GHz, one thread).
MOST_VALUES, COLUMNS = 1 << 20, 1024
# On CUDA a sum of 4 bytes and its scaled copy are made this many values at a time: 16384 rows of a gate-up of 28672 would take 3.8 GB.
MOST_CUDA_VALUES = 1 << 25


def quantised_linear(x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Contract of the reference; int8 sums are exact, so a row has the same bits in any batch."""
    check_operands(x, x_scale, weight, weight_scale)
    out_width = weight.shape[0]
    rows, row_scale = x.reshape(-1, x.shape[-1]), x_scale.reshape(-1, 1)
    if x.is_cuda:
        rows = _padded(_padded(rows, 1, MULTIPLE), 0, LEAST_ROWS if rows.shape[0] < LEAST_ROWS else 1)
        if weight.shape[0] % MULTIPLE or weight.shape[1] % MULTIPLE:
            weight = _padded(_padded(weight, 1, MULTIPLE), 0, MULTIPLE)
    if x.dtype != torch.int8 and x.is_cuda and dtype == torch.bfloat16:
        y = _rowwise(rows, row_scale, weight, weight_scale, bias)
    elif rows.shape[0] * out_width <= (MOST_CUDA_VALUES if x.is_cuda else MOST_VALUES):
        y = _scaled(_product(rows, weight)[: row_scale.shape[0], :out_width], row_scale, weight_scale, bias, dtype)
    elif x.is_cuda:
        y = torch.empty(row_scale.shape[0], out_width, dtype=dtype, device=x.device)
        # Whole tiles of rows: enough of them to fill the GPU, and none too few for its library.
        piece = max(LEAST_ROWS, MOST_CUDA_VALUES // out_width // LEAST_ROWS * LEAST_ROWS)
        for start in range(0, y.shape[0], piece):
            part = slice(start, start + piece)
            few = _padded(rows[part], 0, LEAST_ROWS)
            y[part] = _scaled(_product(few, weight)[: len(y[part]), :out_width], row_scale[part], weight_scale, bias, dtype)
    else:
        y = torch.empty(rows.shape[0], out_width, dtype=dtype, device=x.device)
        for start in range(0, out_width, COLUMNS):
            part = slice(start, start + COLUMNS)
            piece_bias = None if bias is None else bias[part]
            y[:, part] = _scaled(_product(rows, weight[part]), row_scale, weight_scale[part], piece_bias, dtype)
    return y.view(*x.shape[:-1], out_width)


def _product(rows: Tensor, weight: Tensor) -> Tensor:
    """Return the sums without scales: int32, exact, for int8 and fp32 for e4m3."""
    if rows.dtype == torch.int8:
        return torch._int_mm(rows, weight.t())
    one = torch.ones((), device=rows.device)
    return torch._scaled_mm(rows, weight.t(), scale_a=one, scale_b=one, out_dtype=torch.float32)


def _scaled(product: Tensor, row_scale: Tensor, weight_scale: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    y = product * row_scale
    return (y.mul_(weight_scale) if bias is None else torch.addcmul(bias.float(), y, weight_scale)).to(dtype)


def _rowwise(rows: Tensor, row_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
    """One kernel for product, scales and bias; it makes bfloat16 only."""
    count, out_width = row_scale.shape[0], weight_scale.shape[0]
    # Added rows and columns are zero whatever their scale is.
    row_scale = _padded(row_scale.contiguous(), 0, rows.shape[0])
    column_scale = _padded(weight_scale[None].contiguous(), 1, weight.shape[0])
    bias = None if bias is None else _padded(bias.to(torch.bfloat16)[None], 1, weight.shape[0])[0]
    y = torch._scaled_mm(
        rows, weight.t(), scale_a=row_scale, scale_b=column_scale, bias=bias, out_dtype=torch.bfloat16, use_fast_accum=True
    )
    return y[:count, :out_width].contiguous()


def _padded(x: Tensor, axis: int, multiple: int) -> Tensor:
    """Add zeros behind `x` until its size along `axis` divides by `multiple`; `x` itself where it does."""
    missing = -x.shape[axis] % multiple
    if not missing:
        return x.contiguous()
    shape = [*x.shape]
    shape[axis] += missing
    out = torch.zeros(shape, dtype=x.dtype, device=x.device)
    # By their bytes: not every build of torch copies slices of 8-bit floats.
    (out.view(torch.int8) if x.element_size() == 1 else out).narrow(axis, 0, x.shape[axis]).copy_(
        x.view(torch.int8) if x.element_size() == 1 else x
    )
    return out
