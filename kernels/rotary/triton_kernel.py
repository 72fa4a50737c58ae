"""Rotary embedding, one program per block of heads: both halves of a head are in the same thread, so nothing is exchanged."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ahead_of_time import ARCHITECTURES, Compilation
from .device import rotated

PAIRS_PER_PROGRAM = 1024


def launch_config(half: int) -> dict[str, int]:
    """Tile for heads of `half` pairs: 8 pairs per thread, one 16-byte load of 16-bit values from either half."""
    block_half = triton.next_power_of_2(half)
    return {"BLOCK_ROWS": max(1, PAIRS_PER_PROGRAM // block_half), "BLOCK_HALF": block_half, "num_warps": 4}


@triton.jit
def _rotary_kernel(
    x_ptr, cos_ptr, sin_ptr, out_ptr,
    stride_x_batch, stride_x_position, stride_x_head, stride_cos_position, stride_sin_position,
    rows, T, N, half,
    BLOCK_ROWS: tl.constexpr, BLOCK_HALF: tl.constexpr,
):  # fmt: skip
    # A row is one head of one position. Widened after the divisions: a GPU has no 64-bit one.
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    token, n = row // N, row % N
    b, t = (token // T).to(tl.int64), (token % T).to(tl.int64)
    offs_half = tl.arange(0, BLOCK_HALF)
    mask = (row < rows)[:, None] & (offs_half < half)[None, :]
    x_ptrs = x_ptr + (b * stride_x_batch + t * stride_x_position + n * stride_x_head)[:, None] + offs_half[None, :]
    first = tl.load(x_ptrs, mask=mask, other=0.0)
    second = tl.load(x_ptrs + half, mask=mask, other=0.0)
    cos = tl.load(cos_ptr + (t * stride_cos_position)[:, None] + offs_half[None, :], mask=mask, other=0.0)
    sin = tl.load(sin_ptr + (t * stride_sin_position)[:, None] + offs_half[None, :], mask=mask, other=0.0)
    out_ptrs = out_ptr + (row.to(tl.int64) * (2 * half))[:, None] + offs_half[None, :]
    first, second = rotated(first, second, cos, sin, out_ptr.dtype.element_ty)
    tl.store(out_ptrs, first, mask=mask)
    tl.store(out_ptrs + half, second, mask=mask)


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Contract of the reference; x may be a slice of a packed projection."""
    B, T, N, K = x.shape
    if cos.shape != (T, K // 2) or sin.shape != cos.shape:
        raise ValueError(f"rotary: cos is {tuple(cos.shape)}, expected {(T, K // 2)} to match x {tuple(x.shape)}.")
    x, cos, sin = (t if t.stride(-1) == 1 else t.contiguous() for t in (x, cos, sin))
    out = torch.empty(B, T, N, K, dtype=x.dtype, device=x.device)
    if out.numel():
        config, rows = launch_config(K // 2), B * T * N
        with torch.cuda.device_of(x):
            _rotary_kernel[(triton.cdiv(rows, config["BLOCK_ROWS"]),)](
                x, cos, sin, out, *x.stride()[:3], cos.stride(0), sin.stride(0), rows, T, N, K // 2, **config
            )
    return out


def ahead_of_time() -> list[Compilation]:
    """A slice of the packed projection of Llama-3.1-8B everywhere; SmolLM2-135M, a 96-wide head and odd sizes on sm_90."""
    out = []
    for dtype, T, N, K, architectures in (
        ("*bf16", 512, 40, 128, ARCHITECTURES),
        ("*bf16", 256, 64, 96, (90,)),
        ("*fp16", 256, 12, 64, (90,)),
        ("*fp32", 123, 3, 10, (90,)),
        ("*bf16", 1, 1, 2, (90,)),
    ):
        pointers = {"x_ptr": dtype, "cos_ptr": "*fp32", "sin_ptr": "*fp32", "out_ptr": dtype}
        strides = {"stride_x_batch": T * 2 * N * K, "stride_x_position": 2 * N * K, "stride_x_head": K}
        tables = {"stride_cos_position": K // 2, "stride_sin_position": K // 2}
        sizes = {"rows": T * N, "T": T, "N": N, "half": K // 2}
        arguments = {**pointers, **strides, **tables, **sizes, **launch_config(K // 2)}
        out.append(Compilation(_rotary_kernel, arguments, architectures=architectures))
    return out
