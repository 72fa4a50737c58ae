"""Row quantisation, one program per row: the row stays in registers between finding its scale and rounding."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ahead_of_time import ARCHITECTURES, Compilation
from .device import quantised
from .reference import limit_of

MAX_WIDTH = 32768
# Triton converts to e4m3 from sm_89 on.
FP8_ARCHITECTURES = tuple(architecture for architecture in ARCHITECTURES if architecture >= 89)


def launch_config(D: int) -> dict[str, int | bool]:
    """Tile for rows of width D: 8 to 32 elements per thread, so that a row stays in registers."""
    block = triton.next_power_of_2(D)
    return {"BLOCK_D": block, "num_warps": max(1, min(32, block // 256)), "enable_fp_fusion": False}


@triton.jit
def _quantise_rows_kernel(x_ptr, q_ptr, scale_ptr, stride_x_row, D, BLOCK_D: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    offs_d = tl.arange(0, BLOCK_D)
    mask_d = offs_d < D
    x = tl.load(x_ptr + row * stride_x_row + offs_d, mask=mask_d, other=0.0).to(tl.float32)
    q, scale = quantised(x, q_ptr.dtype.element_ty)
    tl.store(q_ptr + row * D + offs_d, q, mask=mask_d)
    tl.store(scale_ptr + row, scale)


def quantise_rows(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Contract of the reference; D is at most MAX_WIDTH."""
    limit_of(dtype)
    D = x.shape[-1]
    if D > MAX_WIDTH:
        raise ValueError(f"quantise_rows: the width of x is {D}, expected at most {MAX_WIDTH}. Use --ops quantise_rows=reference.")
    rows = x.reshape(-1, D)
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    q = torch.empty(x.shape, dtype=dtype, device=x.device)
    scale = torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device)
    if x.numel():
        with torch.cuda.device_of(rows):
            _quantise_rows_kernel[(rows.shape[0],)](rows, q, scale, rows.stride(0), D, **launch_config(D))
    return q, scale


def ahead_of_time() -> list[Compilation]:
    """Both types at the width of Llama-3.1-8B, the widest row, and SmolLM2-135M and an odd width on sm_90."""
    out = []
    for dtype, narrow, D, architectures in (
        ("*bf16", "*i8", 4096, ARCHITECTURES),
        ("*bf16", "*fp8e4nv", 4096, FP8_ARCHITECTURES),
        ("*bf16", "*i8", MAX_WIDTH, ARCHITECTURES),
        ("*bf16", "*fp8e4nv", MAX_WIDTH, FP8_ARCHITECTURES),
        ("*fp16", "*i8", 576, (90,)),
        ("*fp32", "*fp8e4nv", 123, (90,)),
    ):
        arguments = {"x_ptr": dtype, "q_ptr": narrow, "scale_ptr": "*fp32", "stride_x_row": D, "D": D, **launch_config(D)}
        out.append(Compilation(_quantise_rows_kernel, arguments, architectures=architectures))
    return out
