"""Uniform numbers, one program per sequence and piece of its positions: the ten rounds stay in registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ahead_of_time import Compilation
from .device import uniform_at
from .reference import check

MAX_BLOCK = 1024


def launch_config(R: int) -> dict[str, int]:
    """Tile for R positions: 4 per thread, one 16-byte store each."""
    block = max(32, min(MAX_BLOCK, triton.next_power_of_2(R)))
    return {"BLOCK_R": block, "num_warps": max(1, block // 128)}


@triton.jit
def _uniform_kernel(
    seeds_ptr, positions_ptr, step_ptr, out_ptr, stride_seeds, stride_positions, stride_step, R, purpose, BLOCK_R: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    offs_r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    mask_r = offs_r < R
    seed = tl.load(seeds_ptr + row * stride_seeds)
    positions = tl.load(positions_ptr + offs_r.to(tl.int64) * stride_positions, mask=mask_r, other=0)
    u = uniform_at(seed, positions, tl.load(step_ptr + row * stride_step), purpose)
    tl.store(out_ptr + row * R + offs_r, u, mask=mask_r)


def uniform(seeds: Tensor, positions: Tensor, step: Tensor, purpose: int) -> Tensor:
    """Contract of the reference."""
    check(seeds, positions, step)
    B, R = seeds.shape[0], positions.shape[0]
    out = torch.empty(B, R, dtype=torch.float32, device=seeds.device)
    if out.numel():
        config = launch_config(R)
        grid = (B, triton.cdiv(R, config["BLOCK_R"]))
        with torch.cuda.device_of(seeds):
            strides = (seeds.stride(0), positions.stride(0), step.stride(0) if step.dim() else 0)
            _uniform_kernel[grid](seeds, positions, step, out, *strides, R, purpose, **config)
    return out


def ahead_of_time() -> list[Compilation]:
    """A whole answer with a step per row, one of odd length, and strided positions."""
    pointers = {"seeds_ptr": "*i64", "positions_ptr": "*i64", "step_ptr": "*i64", "out_ptr": "*fp32"}
    return [
        Compilation(
            _uniform_kernel,
            {**pointers, "stride_seeds": 1, "stride_positions": stride, "stride_step": own, "R": R, "purpose": purpose, **launch_config(R)},
        )
        for R, stride, own, purpose in ((256, 1, 1, 0), (4096, 1, 0, 1), (123, 2, 0, 32))
    ]
