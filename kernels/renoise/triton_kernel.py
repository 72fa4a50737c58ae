"""Renoise, one program per sequence: its keys stay in registers while the n-th largest is found bit by bit."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ahead_of_time import Compilation
from ..random.device import uniform_at
from ..random.reference import RENOISE
from .reference import SMALLEST_WEIGHT, check

MAX_POSITIONS = 8192
_SMALLEST_WEIGHT = tl.constexpr(SMALLEST_WEIGHT)


def launch_config(R: int) -> dict[str, int]:
    """Tile for R positions: the whole row, at most 16 64-bit keys per thread."""
    block = max(32, triton.next_power_of_2(R))
    return {"BLOCK_R": block, "num_warps": min(16, max(1, block // 256))}


@triton.jit
def _renoise_kernel(
    tokens_ptr, eligible_ptr, weight_ptr, count_ptr, seeds_ptr, step_ptr, out_ptr,
    stride_tokens_row, stride_tokens, stride_eligible_row, stride_eligible, stride_weight_row, stride_weight, stride_count, stride_seeds,
    R, mask_id, purpose,
    BLOCK_R: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    offs_r = tl.arange(0, BLOCK_R)
    mask_r = offs_r < R
    columns = offs_r.to(tl.int64)
    eligible = tl.load(eligible_ptr + row * stride_eligible_row + columns * stride_eligible, mask=mask_r, other=0).to(tl.int1) & mask_r
    weight = tl.load(weight_ptr + row * stride_weight_row + columns * stride_weight, mask=mask_r, other=1.0).to(tl.float64)
    u = uniform_at(tl.load(seeds_ptr + row * stride_seeds), offs_r, tl.load(step_ptr), purpose)
    key = tl.log(u.to(tl.float64)) / tl.maximum(weight, _SMALLEST_WEIGHT)
    # Every key is negative, so the bits of its magnitude order as integers: the largest keys have the smallest.
    size = tl.where(eligible, (-key).to(tl.int64, bitcast=True), 0x7FFFFFFFFFFFFFFF)
    n = tl.minimum(tl.load(count_ptr + row * stride_count), tl.sum(eligible.to(tl.int32)))

    # limit grows to the n-th smallest size: the largest number that fewer than n sizes lie below.
    limit = tl.full((), 0, tl.int64)
    for i in range(63):
        larger = limit | (tl.full((), 1, tl.int64) << (62 - i))
        below = tl.sum((size < larger).to(tl.int32))
        limit = tl.where(below < n, larger, limit)
    is_drawn = size < limit
    is_tied = eligible & (size == limit)
    # Of several at the limit the first in the row are drawn.
    place = tl.cumsum(is_tied.to(tl.int32), 0) + tl.sum(is_drawn.to(tl.int32))
    is_drawn = (is_drawn | (is_tied & (place <= n))) & (n > 0)
    tokens = tl.load(tokens_ptr + row * stride_tokens_row + columns * stride_tokens, mask=mask_r, other=0)
    tl.store(out_ptr + row * R + offs_r, tl.where(is_drawn, tl.cast(mask_id, tl.int64), tokens), mask=mask_r)


def renoise(
    tokens: Tensor, eligible: Tensor, weight: Tensor, count: Tensor, seeds: Tensor, step: Tensor, mask_id: int, purpose: int = RENOISE
) -> Tensor:
    """Contract of the reference; also a ValueError where R exceeds MAX_POSITIONS."""
    check(tokens, eligible, weight, count, seeds)
    B, R = tokens.shape
    if R > MAX_POSITIONS:
        raise ValueError(f"renoise: tokens is {(B, R)}, expected at most {MAX_POSITIONS} positions. Use --ops renoise=reference.")
    out = torch.empty(B, R, dtype=torch.int64, device=tokens.device)
    if out.numel():
        strides = (*tokens.stride(), *eligible.stride(), *weight.stride(), count.stride(0), seeds.stride(0))
        with torch.cuda.device_of(tokens):
            _renoise_kernel[(B,)](
                tokens, eligible, weight, count, seeds, step, out, *strides, R, mask_id, purpose, **launch_config(R)
            )  # fmt: skip
    return out


def ahead_of_time() -> list[Compilation]:
    """Whole rows of a short, a usual and the longest answer, and one of odd length with strided rows."""
    pointers = {"tokens_ptr": "*i64", "eligible_ptr": "*i1", "weight_ptr": "*fp32", "count_ptr": "*i64", "seeds_ptr": "*i64"}
    pointers |= {"step_ptr": "*i64", "out_ptr": "*i64"}
    steps = dict.fromkeys(("stride_tokens", "stride_eligible", "stride_weight", "stride_count", "stride_seeds"), 1)
    rows = ("stride_tokens_row", "stride_eligible_row", "stride_weight_row")
    return [
        Compilation(
            _renoise_kernel,
            {**pointers, **steps, **dict.fromkeys(rows, stride), "R": R, "mask_id": 16, "purpose": 1, **launch_config(R)},
        )
        for R, stride in ((1, 1), (256, 256), (123, 200), (MAX_POSITIONS, MAX_POSITIONS))
    ]
