"""SwiGLU and row quantisation, one program per row: the product never leaves the registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ahead_of_time import ARCHITECTURES, Compilation
from ..quantise_rows.device import quantised
from ..quantise_rows.reference import limit_of
from ..quantise_rows.triton_kernel import FP8_ARCHITECTURES, MAX_WIDTH, launch_config


@triton.jit
def _swiglu_quantise_kernel(gate_up_ptr, q_ptr, scale_ptr, stride_gate_up_row, F, BLOCK_D: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    offs_f = tl.arange(0, BLOCK_D)
    mask_f = offs_f < F
    gate_ptrs = gate_up_ptr + row * stride_gate_up_row + offs_f
    gate = tl.load(gate_ptrs, mask=mask_f, other=0.0).to(tl.float32)
    up = tl.load(gate_ptrs + F, mask=mask_f, other=0.0).to(tl.float32)
    # silu and the product are rounded to the input's type, so that the codes are those of swiglu and quantisation apart.
    silu = (gate / (1.0 + tl.exp(-gate))).to(gate_up_ptr.dtype.element_ty).to(tl.float32)
    y = (silu * up).to(gate_up_ptr.dtype.element_ty).to(tl.float32)
    q, scale = quantised(y, q_ptr.dtype.element_ty)
    tl.store(q_ptr + row * F + offs_f, q, mask=mask_f)
    tl.store(scale_ptr + row, scale)


def swiglu_quantise(gate_up: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Contract of the reference; F is at most MAX_WIDTH."""
    limit_of(dtype)
    if gate_up.shape[-1] % 2:
        raise ValueError(f"swiglu_quantise: the last axis of gate_up is {gate_up.shape[-1]}, expected an even width (gate and up halves).")
    F = gate_up.shape[-1] // 2
    if F > MAX_WIDTH:
        raise ValueError(f"swiglu_quantise: the MLP width is {F}, expected at most {MAX_WIDTH}. Use --ops swiglu_quantise=reference.")
    rows = gate_up.reshape(-1, 2 * F)
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    q = torch.empty(*gate_up.shape[:-1], F, dtype=dtype, device=gate_up.device)
    scale = torch.empty(gate_up.shape[:-1], dtype=torch.float32, device=gate_up.device)
    if q.numel():
        with torch.cuda.device_of(rows):
            _swiglu_quantise_kernel[(rows.shape[0],)](rows, q, scale, rows.stride(0), F, **launch_config(F))
    return q, scale


def ahead_of_time() -> list[Compilation]:
    """Both types at the MLP widths of Llama-3.2-1B and 3.1-8B and the widest row; SmolLM2-135M and an odd width on sm_90."""
    out = []
    for dtype, narrow, F, architectures in (
        ("*bf16", "*i8", 8192, ARCHITECTURES),
        ("*bf16", "*fp8e4nv", 14336, FP8_ARCHITECTURES),
        ("*bf16", "*i8", MAX_WIDTH, ARCHITECTURES),
        ("*fp16", "*i8", 1536, (90,)),
        ("*fp32", "*fp8e4nv", 123, (90,)),
    ):
        pointers = {"gate_up_ptr": dtype, "q_ptr": narrow, "scale_ptr": "*fp32"}
        arguments = {**pointers, "stride_gate_up_row": 2 * F, "F": F, **launch_config(F)}
        out.append(Compilation(_swiglu_quantise_kernel, arguments, architectures=architectures))
    return out
