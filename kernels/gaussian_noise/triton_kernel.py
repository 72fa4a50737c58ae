"""Normal numbers, one program per row and piece of it: four numbers of one generator call stay in a thread."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ahead_of_time import Compilation
from ..random.device import normals_at
from .reference import check

BLOCK = 2048


@triton.jit
def _gaussian_kernel(
    seeds_ptr, positions_ptr, steps_ptr, out_ptr, stride_seeds, stride_positions, stride_steps, count, purpose, BLOCK: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * BLOCK
    seed = tl.load(seeds_ptr + row * stride_seeds)
    position = tl.load(positions_ptr + row * stride_positions)
    z = normals_at(seed, position, tl.load(steps_ptr + row * stride_steps), purpose, first, BLOCK)
    offs = first + tl.arange(0, BLOCK)
    tl.store(out_ptr + row * count + offs, z, mask=offs < count)


def gaussian_noise(seeds: Tensor, positions: Tensor, steps: Tensor, purpose: int, count: int) -> Tensor:
    """Contract of the reference."""
    check(seeds, positions, steps)
    out = torch.empty(seeds.shape[0], count, dtype=torch.float32, device=seeds.device)
    if out.numel():
        columns = (seeds, positions, steps)
        with torch.cuda.device_of(seeds):
            _gaussian_kernel[(seeds.shape[0], triton.cdiv(count, BLOCK))](
                *columns, out, *(column.stride(0) for column in columns), count, purpose, BLOCK=BLOCK, num_warps=4
            )
    return out


def ahead_of_time() -> list[Compilation]:
    """A vocabulary that groups of four divide, and one they do not."""
    pointers = {"seeds_ptr": "*i64", "positions_ptr": "*i64", "steps_ptr": "*i64", "out_ptr": "*fp32"}
    strides = {"stride_seeds": 1, "stride_positions": 1, "stride_steps": 1}
    return [
        Compilation(_gaussian_kernel, {**pointers, **strides, "count": count, "purpose": 8, "BLOCK": BLOCK, "num_warps": 4})
        for count in (49152, 32001)
    ]
