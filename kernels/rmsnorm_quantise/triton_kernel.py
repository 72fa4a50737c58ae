"""Residual addition, RMSNorm and row quantisation, one program per row: the normalised row never leaves the registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ahead_of_time import ARCHITECTURES, Compilation
from ..quantise_rows.device import quantised
from ..quantise_rows.reference import limit_of
from ..quantise_rows.triton_kernel import FP8_ARCHITECTURES

MAX_WIDTH = 16384


def launch_config(D: int) -> dict[str, int | bool]:
    """Tile for rows of width D: 8 to 32 elements per thread, so that a row stays in registers."""
    block = triton.next_power_of_2(D)
    return {"BLOCK_D": block, "num_warps": max(1, min(16, block // 256)), "enable_fp_fusion": False}


@triton.jit
def _rmsnorm_quantise_kernel(
    x_ptr, residual_ptr, weight_ptr, q_ptr, scale_ptr, h_ptr, stride_x_row, stride_residual_row, D, eps, BLOCK_D: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    offs_d = tl.arange(0, BLOCK_D)
    mask_d = offs_d < D
    h_stored = tl.load(x_ptr + row * stride_x_row + offs_d, mask=mask_d, other=0.0)
    h = h_stored.to(tl.float32)
    if residual_ptr is not None:
        h += tl.load(residual_ptr + row * stride_residual_row + offs_d, mask=mask_d, other=0.0).to(tl.float32)
        h_stored = h.to(h_ptr.dtype.element_ty)
        tl.store(h_ptr + row * D + offs_d, h_stored, mask=mask_d)
        # The residual stream is rounded before it is squared.
        h = h_stored.to(tl.float32)
    rate = tl.rsqrt(tl.sum(h * h, axis=0) / D + eps)
    # Both products are rounded to the stream's type, so that the codes are those of norm and quantisation apart.
    normed = (h * rate).to(x_ptr.dtype.element_ty).to(tl.float32)
    weight = tl.load(weight_ptr + offs_d, mask=mask_d, other=0.0).to(tl.float32)
    y = (normed * weight).to(x_ptr.dtype.element_ty).to(tl.float32)
    q, scale = quantised(y, q_ptr.dtype.element_ty)
    tl.store(q_ptr + row * D + offs_d, q, mask=mask_d)
    tl.store(scale_ptr + row, scale)


def rmsnorm_quantise(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Contract of the reference; D is at most MAX_WIDTH."""
    limit_of(dtype)
    if weight.shape != x.shape[-1:] or (residual is not None and residual.shape != x.shape):
        raise ValueError(f"rmsnorm_quantise: weight is {tuple(weight.shape)}, expected {tuple(x.shape[-1:])} to match x {tuple(x.shape)}.")
    D = x.shape[-1]
    if D > MAX_WIDTH:
        raise ValueError(f"rmsnorm_quantise: the width of x is {D}, expected at most {MAX_WIDTH}. Use --ops rmsnorm_quantise=reference.")
    rows, added = _rows(x), None if residual is None else _rows(residual)
    q = torch.empty(x.shape, dtype=dtype, device=x.device)
    scale = torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device)
    # Without a residual the stream is x itself: nothing is copied.
    h = x if residual is None else torch.empty_like(x, memory_format=torch.contiguous_format)
    if x.numel():
        with torch.cuda.device_of(rows):
            _rmsnorm_quantise_kernel[(rows.shape[0],)](
                rows, added, weight.contiguous(), q, scale, None if residual is None else h,
                rows.stride(0), 0 if added is None else added.stride(0), D, eps, **launch_config(D),
            )  # fmt: skip
    return q, scale, h


def _rows(x: Tensor) -> Tensor:
    """View `x` as `[rows, D]` with a contiguous last axis, copying only where it has no such view."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()


def ahead_of_time() -> list[Compilation]:
    """Both types at the width of Llama-3.1-8B and the widest row; SmolLM2-135M, an odd width and no residual on sm_90."""
    out = []
    for dtype, narrow, D, architectures in (
        ("*bf16", "*i8", 4096, ARCHITECTURES),
        ("*bf16", "*fp8e4nv", 4096, FP8_ARCHITECTURES),
        ("*bf16", "*i8", MAX_WIDTH, ARCHITECTURES),
        ("*fp16", "*i8", 576, (90,)),
        ("*fp32", "*fp8e4nv", 123, (90,)),
    ):
        pointers = {**dict.fromkeys(("x_ptr", "residual_ptr", "weight_ptr", "h_ptr"), dtype), "q_ptr": narrow, "scale_ptr": "*fp32"}
        sizes = {"stride_x_row": D, "stride_residual_row": D, "D": D, "eps": 1e-5, **launch_config(D)}
        out.append(Compilation(_rmsnorm_quantise_kernel, {**pointers, **sizes}, architectures=architectures))
    without = {**out[0].arguments, "residual_ptr": None, "h_ptr": None, "stride_residual_row": 0}
    return [*out, Compilation(_rmsnorm_quantise_kernel, without, architectures=(90,))]
