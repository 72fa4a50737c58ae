"""SwiGLU, one program per piece of a row: gate and up are read once and the half-width product is written once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ahead_of_time import ARCHITECTURES, Compilation

MAX_BLOCK = 1024


def launch_config(F: int) -> dict[str, int]:
    """Tile for a row of width F: 8 elements per thread, which is one 16-byte load of 16-bit values."""
    block = max(64, min(MAX_BLOCK, triton.next_power_of_2(F)))
    return {"BLOCK_F": block, "num_warps": max(1, block // 256)}


@triton.jit
def _swiglu_kernel(gate_up_ptr, out_ptr, stride_gate_up_row, F, BLOCK_F: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    offs_f = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    mask_f = offs_f < F
    gate_ptrs = gate_up_ptr + row * stride_gate_up_row + offs_f
    gate = tl.load(gate_ptrs, mask=mask_f, other=0.0).to(tl.float32)
    up = tl.load(gate_ptrs + F, mask=mask_f, other=0.0).to(tl.float32)
    # silu is rounded before the product, as the reference does.
    silu = (gate / (1.0 + tl.exp(-gate))).to(out_ptr.dtype.element_ty).to(tl.float32)
    tl.store(out_ptr + row * F + offs_f, (silu * up).to(out_ptr.dtype.element_ty), mask=mask_f)


def swiglu(gate_up: Tensor) -> Tensor:
    """Contract of the reference."""
    if gate_up.shape[-1] % 2:
        raise ValueError(f"swiglu: the last axis of gate_up is {gate_up.shape[-1]}, expected an even width (gate and up halves).")
    F = gate_up.shape[-1] // 2
    rows = gate_up.reshape(-1, 2 * F)
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    out = torch.empty(*gate_up.shape[:-1], F, dtype=gate_up.dtype, device=gate_up.device)
    if out.numel():
        config = launch_config(F)
        grid = (rows.shape[0], triton.cdiv(F, config["BLOCK_F"]))
        with torch.cuda.device_of(rows):
            _swiglu_kernel[grid](rows, out, rows.stride(0), F, **config)
    return out


def ahead_of_time() -> list[Compilation]:
    """The width of Llama-3.2-1B everywhere; that of SmolLM2-135M, another dtype, and widths that nothing divides, on sm_90."""
    out = []
    for dtype, F, architectures in (
        ("*bf16", 8192, ARCHITECTURES),
        ("*fp16", 1536, (90,)),
        ("*fp32", 123, (90,)),
        ("*bf16", 1, (90,)),
    ):
        arguments = {"gate_up_ptr": dtype, "out_ptr": dtype, "stride_gate_up_row": 2 * F, "F": F, **launch_config(F)}
        out.append(Compilation(_swiglu_kernel, arguments, architectures=architectures))
    return out
