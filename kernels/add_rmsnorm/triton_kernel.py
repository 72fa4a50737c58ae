"""Residual addition and RMSNorm, one program per row: the row stays in registers between the two passes."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ahead_of_time import ARCHITECTURES, Compilation
from .reference import check_shapes

MAX_WIDTH = 16384


def launch_config(D: int) -> dict[str, int]:
    """Tile for rows of width D: 8 to 32 elements per thread, so that a row stays in registers."""
    block = triton.next_power_of_2(D)
    return {"BLOCK_D": block, "num_warps": max(1, min(16, block // 256))}


@triton.jit
def _add_rmsnorm_kernel(
    x_ptr, residual_ptr, weight_ptr, index_ptr, y_ptr, h_ptr, stride_x_row, stride_residual_row, D, eps, rows_each, weights,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    offs_d = tl.arange(0, BLOCK_D)
    mask_d = offs_d < D
    h = tl.load(x_ptr + row * stride_x_row + offs_d, mask=mask_d, other=0.0).to(tl.float32)
    if residual_ptr is not None:
        h += tl.load(residual_ptr + row * stride_residual_row + offs_d, mask=mask_d, other=0.0).to(tl.float32)
        h_rounded = h.to(h_ptr.dtype.element_ty)
        tl.store(h_ptr + row * D + offs_d, h_rounded, mask=mask_d)
        # The residual stream is rounded before it is squared.
        h = h_rounded.to(tl.float32)
    rate = tl.rsqrt(tl.sum(h * h, axis=0) / D + eps)
    normed = (h * rate).to(y_ptr.dtype.element_ty).to(tl.float32)
    if index_ptr is not None:
        own = tl.load(index_ptr + row // rows_each)
        weight_ptr += tl.where(own < 0, own + weights, own) * D
    weight = tl.load(weight_ptr + offs_d, mask=mask_d, other=0.0).to(tl.float32)
    tl.store(y_ptr + row * D + offs_d, (normed * weight).to(y_ptr.dtype.element_ty), mask=mask_d)


def add_rmsnorm(
    x: Tensor, residual: Tensor | None, weight: Tensor, eps: float = 1e-5, index: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Contract of the reference; D is at most MAX_WIDTH."""
    check_shapes(x, residual, weight, index)
    D = x.shape[-1]
    if D > MAX_WIDTH:
        raise ValueError(f"add_rmsnorm: the width of x is {D}, expected at most {MAX_WIDTH}. Use --ops add_rmsnorm=reference.")
    rows, added = _rows(x), None if residual is None else _rows(residual)
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    # Without a residual the stream is x itself: nothing is copied.
    h = x if residual is None else torch.empty_like(y)
    if x.numel():
        with torch.cuda.device_of(rows):
            _add_rmsnorm_kernel[(rows.shape[0],)](
                rows, added, weight.contiguous(), index, y, None if residual is None else h,
                rows.stride(0), 0 if added is None else added.stride(0), D, eps,
                1 if index is None else rows.shape[0] // index.numel(), 1 if index is None else weight.shape[0], **launch_config(D),
            )  # fmt: skip
    return y, h


def _rows(x: Tensor) -> Tensor:
    """View `x` as `[rows, D]` with a contiguous last axis, copying only where it has no such view."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()


def ahead_of_time() -> list[Compilation]:
    """The width of Llama-3.1-8B and the widest everywhere; SmolLM2-135M, odd widths and no residual on sm_90."""
    pointers = ("x_ptr", "residual_ptr", "weight_ptr", "y_ptr", "h_ptr")
    out = []
    for dtype, D, architectures in (
        ("*bf16", 4096, ARCHITECTURES),
        ("*bf16", MAX_WIDTH, ARCHITECTURES),
        ("*fp16", 576, (90,)),
        ("*fp32", 123, (90,)),
        ("*bf16", 1, (90,)),
    ):
        sizes = {"stride_x_row": D, "stride_residual_row": D, "D": D, "eps": 1e-5, "rows_each": 1, "weights": 1, **launch_config(D)}
        arguments = {**dict.fromkeys(pointers, dtype), "index_ptr": None, **sizes}
        out.append(Compilation(_add_rmsnorm_kernel, arguments, architectures=architectures))
    without = {**out[0].arguments, "residual_ptr": None, "h_ptr": None, "stride_residual_row": 0}
    per_row = {**out[0].arguments, "index_ptr": "*i64", "rows_each": 256, "weights": 5}
    return [*out, *(Compilation(_add_rmsnorm_kernel, arguments, architectures=(90,)) for arguments in (without, per_row))]
