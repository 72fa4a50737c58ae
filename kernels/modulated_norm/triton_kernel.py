"""Gated addition, RMSNorm and modulation, one program per row: the row stays in registers between the two passes."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ahead_of_time import ARCHITECTURES, Compilation
from .reference import check

MAX_WIDTH = 16384


def launch_config(D: int) -> dict[str, int]:
    """Tile for rows of width D: 8 to 32 elements per thread, so that a row stays in registers."""
    block = triton.next_power_of_2(D)
    return {"BLOCK_D": block, "num_warps": max(1, min(16, block // 256))}


@triton.jit
def _modulated_norm_kernel(
    x_ptr, residual_ptr, gate_ptr, weight_ptr, shift_ptr, y_ptr, h_ptr,
    stride_x_row, stride_residual_row, stride_gate_row, stride_weight_row, stride_shift_row, D, eps,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    offs_d = tl.arange(0, BLOCK_D)
    mask_d = offs_d < D
    h = tl.load(x_ptr + row * stride_x_row + offs_d, mask=mask_d, other=0.0).to(tl.float32)
    if residual_ptr is not None:
        gate = tl.load(gate_ptr + row * stride_gate_row + offs_d, mask=mask_d, other=0.0)
        h = tl.load(residual_ptr + row * stride_residual_row + offs_d, mask=mask_d, other=0.0).to(tl.float32) + gate * h
        h_rounded = h.to(h_ptr.dtype.element_ty)
        tl.store(h_ptr + row * D + offs_d, h_rounded, mask=mask_d)
        # The residual stream is rounded before it is squared.
        h = h_rounded.to(tl.float32)
    rate = tl.rsqrt(tl.sum(h * h, axis=0) / D + eps)
    weight = tl.load(weight_ptr + row * stride_weight_row + offs_d, mask=mask_d, other=0.0)
    shift = tl.load(shift_ptr + row * stride_shift_row + offs_d, mask=mask_d, other=0.0)
    tl.store(y_ptr + row * D + offs_d, (h * rate * weight + shift).to(y_ptr.dtype.element_ty), mask=mask_d)


def modulated_norm(
    x: Tensor, residual: Tensor | None, gate: Tensor | None, weight: Tensor, shift: Tensor, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """Contract of the reference; D is at most MAX_WIDTH."""
    check(x, residual, gate, weight, shift)
    M, D = x.shape
    if D > MAX_WIDTH:
        raise ValueError(f"modulated_norm: the width of x is {D}, expected at most {MAX_WIDTH}. Use --ops modulated_norm=reference.")
    given = [None if t is None else t if t.stride(1) == 1 else t.contiguous() for t in (x, residual, gate, weight, shift)]
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    # Without a residual the stream is x itself: nothing is copied.
    h = x if residual is None else torch.empty_like(y)
    if x.numel():
        with torch.cuda.device_of(x):
            _modulated_norm_kernel[(M,)](
                *given, y, None if residual is None else h, *(0 if t is None else t.stride(0) for t in given), D, eps, **launch_config(D)
            )
    return y, h


def ahead_of_time() -> list[Compilation]:
    """The width of Llama-3.1-8B everywhere; SmolLM2-135M, the widest, odd widths and no residual on sm_90."""
    out = []
    for dtype, D, architectures in (
        ("*bf16", 4096, ARCHITECTURES),
        ("*bf16", 8192, (90,)),
        ("*fp16", 576, (90,)),
        ("*fp32", 123, (90,)),
    ):
        pointers = {**dict.fromkeys(("x_ptr", "residual_ptr", "y_ptr", "h_ptr"), dtype), **dict.fromkeys(_MODULATION, "*fp32")}
        strides = dict.fromkeys(("stride_x_row", "stride_residual_row"), D)
        rows = dict.fromkeys(("stride_gate_row", "stride_weight_row", "stride_shift_row"), 6 * D)
        arguments = {**pointers, **strides, **rows, "D": D, "eps": 1e-5, **launch_config(D)}
        out.append(Compilation(_modulated_norm_kernel, arguments, architectures=architectures))
    without = {**out[0].arguments, "residual_ptr": None, "gate_ptr": None, "h_ptr": None, "stride_residual_row": 0, "stride_gate_row": 0}
    return [*out, Compilation(_modulated_norm_kernel, without, architectures=(90,))]


_MODULATION = ("gate_ptr", "weight_ptr", "shift_ptr")
