"""Training noise, one lane per position: it walks back through the steps to the id it takes, and stores that.

The draws are functions of their index, so a lane asks them again instead of waiting for a neighbour: a program holds any piece of the
batch, and neither the rows nor their length are limited.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ahead_of_time import Compilation
from ..random.device import uniform_at
from ..random.reference import CORRUPT_DUPLICATE, CORRUPT_LEVEL, CORRUPT_MASK, CORRUPT_SPAN, CORRUPT_SWAP
from .reference import LOWEST_LEVEL, MAX_SHIFT, MAX_SPAN, VARIANTS, WHOLE_MASK_PROBABILITY, check

MAX_BLOCK = 2048
_LEVEL, _MASK, _SWAP = tl.constexpr(CORRUPT_LEVEL), tl.constexpr(CORRUPT_MASK), tl.constexpr(CORRUPT_SWAP)
_DUPLICATE, _SPAN = tl.constexpr(CORRUPT_DUPLICATE), tl.constexpr(CORRUPT_SPAN)
_LOWEST_LEVEL, _ABOVE_LOWEST = tl.constexpr(LOWEST_LEVEL), tl.constexpr(1.0 - LOWEST_LEVEL)
_WHOLE, _MAX_SPAN, _MAX_SHIFT = tl.constexpr(WHOLE_MASK_PROBABILITY), tl.constexpr(MAX_SPAN), tl.constexpr(MAX_SHIFT)


def launch_config(count: int) -> dict[str, int | bool]:
    """Tile for `count` positions of all rows, 4 per thread (8 spill); a product and a sum must round apart as they do in the reference."""
    block = max(32, min(MAX_BLOCK, triton.next_power_of_2(count)))
    return {"BLOCK": block, "num_warps": max(1, block // 128), "enable_fp_fusion": False}


@triton.jit
def _levels(seed, step, answer_length, fixed_level, VARIANT: tl.constexpr, HAS_LEVEL: tl.constexpr):
    """Step 1: (f, q)."""
    fraction = uniform_at(seed, 2, step, _LEVEL)
    rate = uniform_at(seed, 3, step, _LEVEL)
    if HAS_LEVEL:
        level = fraction * 0.0 + fixed_level
        rate = rate * 0.0 + 0.25
    elif VARIANT == "paper":
        level = tl.where(uniform_at(seed, 1, step, _LEVEL) < 0.5, fraction, 0.0)
        rate = rate * 0.5
    elif VARIANT == "code":
        is_whole = uniform_at(seed, 0, step, _LEVEL) < _WHOLE
        level = tl.where(uniform_at(seed, 1, step, _LEVEL) < 0.5, fraction * 0.5, 0.0)
        level = tl.where(is_whole, 1.0, level)
        rate = tl.where(is_whole | (answer_length <= 2), 0.0, rate)
    else:
        level = _LOWEST_LEVEL + _ABOVE_LOWEST * fraction
        rate = rate * 0.5
    return level, rate * 0.25


@triton.jit
def _before_span(index, seed, step, rate, answer_length):
    """Step 5 backwards: the position whose token ends up at `index`."""
    chance = uniform_at(seed, 0, step, _SPAN)
    # A draw just below 1 may round up in the product, hence the caps.
    count = tl.minimum(tl.minimum((uniform_at(seed, 1, step, _SPAN) * _MAX_SPAN).to(tl.int32) + 1, _MAX_SPAN), answer_length)
    places = answer_length - count
    start = tl.minimum((uniform_at(seed, 2, step, _SPAN) * (places + 1).to(tl.float32)).to(tl.int32), places)
    shift = tl.minimum((uniform_at(seed, 3, step, _SPAN) * (2 * _MAX_SHIFT)).to(tl.int32), 2 * _MAX_SHIFT - 1) - _MAX_SHIFT
    shift = tl.where(shift >= 0, shift + 1, shift)
    target = start + shift
    end = tl.where(chance < rate, target + count, target)
    return tl.where((index >= target) & (index < end), index - shift, index)


@triton.jit
def _takes_left(index, seed, step, rate, answer_length):
    draw = uniform_at(seed, index, step, _DUPLICATE)
    is_last = index == answer_length - 1
    return (index >= 1) & (index < answer_length) & ((draw < rate * 0.5) | (is_last & (draw < rate)))


@triton.jit
def _before_duplicate(index, seed, step, rate, answer_length):
    """Step 4 backwards: the second pass reads what the first made of the right neighbour, the first what was there before."""
    draw = uniform_at(seed, index, step, _DUPLICATE)
    # What the first pass took needs u < q/2, except at the first position, which has no left neighbour.
    takes_right = (index < answer_length - 1) & (draw < rate) & ((draw >= rate * 0.5) | (index == 0))
    index = tl.where(takes_right, index + 1, index)
    return tl.where(_takes_left(index, seed, step, rate, answer_length), index - 1, index)


@triton.jit
def _is_swapped(index, seed, step, rate, answer_length):
    return (index >= 0) & (index < answer_length - 1) & (uniform_at(seed, index, step, _SWAP) < rate)


@triton.jit
def _before_swap(index, seed, step, rate, answer_length):
    """Step 3 backwards: a hit takes its right neighbour; the position behind a run of hits takes the token at the run's start."""
    is_hit = _is_swapped(index, seed, step, rate, answer_length)
    walks = (is_hit == 0) & _is_swapped(index - 1, seed, step, rate, answer_length)
    source = tl.where(is_hit, index + 1, index)
    # A run goes on with probability q <= 1/4, so a few rounds reach the start of the longest one in the piece.
    while tl.max(walks.to(tl.int32), 0) > 0:
        source = tl.where(walks, source - 1, source)
        walks = walks & _is_swapped(source - 1, seed, step, rate, answer_length)
    return source


@triton.jit
def _structured_noise_kernel(
    ids_ptr, answer_start_ptr, lengths_ptr, seeds_ptr, step_ptr, out_ptr, level_ptr,
    stride_ids_row, stride_ids, stride_answer_start, stride_lengths, stride_seeds,
    T, count, mask_id, fixed_level,
    VARIANT: tl.constexpr, HAS_LEVEL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < count
    row = offs // T
    column = (offs - row * T).to(tl.int32)
    answer_start = tl.load(answer_start_ptr + row * stride_answer_start, mask=mask, other=0).to(tl.int32)
    answer_length = tl.load(lengths_ptr + row * stride_lengths, mask=mask, other=0).to(tl.int32) - answer_start
    seed = tl.load(seeds_ptr + row * stride_seeds, mask=mask, other=0)
    step = tl.load(step_ptr)
    level, rate = _levels(seed, step, answer_length, fixed_level, VARIANT, HAS_LEVEL)

    index = column - answer_start
    is_answer = (index >= 0) & (index < answer_length)
    source = index
    if VARIANT != "mask_only":
        source = _before_span(source, seed, step, rate, answer_length)
        source = _before_duplicate(source, seed, step, rate, answer_length)
        source = _before_swap(source, seed, step, rate, answer_length)
    is_masked = is_answer & (uniform_at(seed, source, step, _MASK) < level)
    source = tl.where(is_answer, source + answer_start, column).to(tl.int64)
    token = tl.load(ids_ptr + row * stride_ids_row + source * stride_ids, mask=mask & (source < T), other=0)
    tl.store(out_ptr + offs, tl.where(is_masked, tl.cast(mask_id, tl.int64), token), mask=mask)
    tl.store(level_ptr + row, level, mask=mask & (column == 0))


def structured_noise(
    ids: Tensor,
    answer_start: Tensor,
    lengths: Tensor,
    seeds: Tensor,
    step: Tensor,
    mask_id: int,
    variant: str,
    fixed_level: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Contract of the reference; `ids` and the other tensors are int64."""
    check(ids, answer_start, lengths, seeds, variant)
    B, T = ids.shape
    out = torch.empty(B, T, dtype=torch.int64, device=ids.device)
    level = torch.empty(B, dtype=torch.float32, device=ids.device)
    if out.numel():
        config = launch_config(B * T)
        strides = (*ids.stride(), answer_start.stride(0), lengths.stride(0), seeds.stride(0))
        with torch.cuda.device_of(ids):
            _structured_noise_kernel[(triton.cdiv(B * T, config["BLOCK"]),)](
                ids, answer_start, lengths, seeds, step, out, level, *strides, T, B * T, mask_id, fixed_level or 0.0,
                VARIANT=variant, HAS_LEVEL=fixed_level is not None, **config,
            )  # fmt: skip
    return out, level


def ahead_of_time() -> list[Compilation]:
    """Every variant at a training length, and a chosen level at an odd one."""
    pointers = dict.fromkeys(("ids_ptr", "answer_start_ptr", "lengths_ptr", "seeds_ptr", "step_ptr", "out_ptr"), "*i64")
    pointers["level_ptr"] = "*fp32"
    steps = dict.fromkeys(("stride_ids", "stride_answer_start", "stride_lengths", "stride_seeds"), 1)
    cases = [(64, 512, variant, None) for variant in VARIANTS] + [(3, 123, "paper", 0.3)]
    return [
        Compilation(
            _structured_noise_kernel,
            {**pointers, **steps, "stride_ids_row": T, "T": T, "count": B * T, "mask_id": 3, "fixed_level": level or 0.0}
            | {"VARIANT": variant, "HAS_LEVEL": level is not None, **launch_config(B * T)},
        )
        for B, T, variant, level in cases
    ]
