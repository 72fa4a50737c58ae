"""Counts and choices within one row held in registers: the smallest keys of two pools at once, and the spans around random centres."""

from __future__ import annotations

import triton
import triton.language as tl

# Counts of the second pool stand in the upper half of a word, so that one reduction serves both.
_SECOND = tl.constexpr(1 << 16)
_FIRST_HALF = tl.constexpr((1 << 16) - 1)


@triton.jit
def count_both(flags, inside):
    """Return how many `flags` are set, and how many of those are `inside`, by one reduction."""
    # Plain sums of flags become population counts, which LLVM passes through the stack.
    counts = tl.sum(tl.where(flags, tl.where(inside, 1 + _SECOND, 1), 0), 0)
    return counts & _FIRST_HALF, counts >> 16


@triton.jit
def take_smallest(key, pool, in_second, first, second, BITS: tl.constexpr):
    """Return the `first` smallest keys of `pool & ~in_second` and the `second` smallest of `pool & in_second`, ties to the lower index.

    key: block of int32 (BITS 31) or int64 (BITS 63), not negative, below the largest of its type. first, second: int64 numbers; one
    below 1 takes none. Each limit grows bit by bit to the n-th smallest key: the largest number that fewer than n keys lie below.
    """
    one = tl.where(in_second, _SECOND, 1)
    size = tl.sum(tl.where(pool, one, 0), 0)
    first = tl.minimum(tl.maximum(first, 0), (size & _FIRST_HALF).to(tl.int64)).to(tl.int32)
    second = tl.minimum(tl.maximum(second, 0), (size >> 16).to(tl.int64)).to(tl.int32)
    outside = tl.full((), 2**BITS - 1, key.dtype)
    key = tl.where(pool, key, outside)
    limit_first = tl.full((), 0, key.dtype)
    limit_second = tl.full((), 0, key.dtype)
    for i in range(BITS):
        bit = tl.full((), 1, key.dtype) << (BITS - 1 - i)
        limit = tl.where(in_second, limit_second | bit, limit_first | bit)
        below = tl.sum(tl.where(key < limit, one, 0), 0)
        limit_first = tl.where((below & _FIRST_HALF) < first, limit_first | bit, limit_first)
        limit_second = tl.where((below >> 16) < second, limit_second | bit, limit_second)
    limit = tl.where(in_second, limit_second, limit_first)
    is_below = key < limit
    is_tied = pool & (key == limit)
    # Of several at the limit the first in the row are taken.
    place = tl.cumsum(tl.where(is_tied, one, 0), 0) + tl.sum(tl.where(is_below, one, 0), 0)
    is_wanted = tl.where(in_second, (place >> 16) <= second, (place & _FIRST_HALF) <= first)
    return is_below | (is_tied & is_wanted)


@triton.jit
def covered_by_spans(u, offs, mask, is_centre, visible, width, scratch_ptr):
    """Return which of `offs` lie in a span [start, start + width) cut at `visible`, start = max(0, floor(u * visible) - width // 2).

    u: fp32 block, one per possible centre; is_centre: the ones that count. visible, width: int64 numbers. A position is covered where
    the last start at or before it is less than `width` away. scratch_ptr: int64, one per position of `mask`, of this program alone
    (a histogram in registers would take more of them than there are).
    """
    centre = (u.to(tl.float64) * visible.to(tl.float64)).to(tl.int32)
    start = tl.maximum(centre - (width // 2).to(tl.int32), 0)
    ones = tl.full(offs.shape, 1, tl.int64)
    tl.store(scratch_ptr + offs, ones - 1, mask=mask)
    tl.debug_barrier()
    tl.store(scratch_ptr + start, ones, mask=is_centre)
    tl.debug_barrier()
    has_start = tl.load(scratch_ptr + offs, mask=mask, other=0) > 0
    tl.debug_barrier()
    last = tl.associative_scan(tl.where(has_start, offs.to(tl.int64), -1 - width), 0, _larger)
    return (offs - last < width) & (offs < visible)


@triton.jit
def _larger(a, b):
    return tl.maximum(a, b)
