"""The low-rank part of a linear layer for one tile of rows, as Triton kernels share it."""

from __future__ import annotations

import triton
import triton.language as tl

from ..device_math import loop_bound


@triton.jit
def adapters_of(index_ptr, rows, mask_m, rows_each):
    """Return (adapter of every row, -1 for none; the least and the largest present); adapter 0 everywhere where there is no index."""
    if index_ptr is not None:
        adapter = tl.load(index_ptr + rows // rows_each, mask=mask_m, other=-1).to(tl.int32)
    else:
        adapter = tl.where(mask_m, 0, -1)
    first = tl.min(tl.where(adapter >= 0, adapter, 2147483646), axis=0)
    return adapter, first, tl.max(adapter, axis=0)


@triton.jit
def _add_part(
    acc, low_ptr, b_ptr, is_mine, offs_m, stride_low_row, rows_b, mask_n, rank,
    BLOCK_R: tl.constexpr,
):  # fmt: skip
    """acc += low B^T over the ranks of one adapter and one part; rows that are not its own meet zeros and keep their bits."""
    offs_r = tl.arange(0, BLOCK_R)
    low_ptrs = low_ptr + offs_m[:, None] * stride_low_row + offs_r[None, :]
    for r in tl.range(0, loop_bound(rank), BLOCK_R):
        mask_r = (offs_r < rank - r)[None, :]
        low = tl.load(low_ptrs + r, mask=is_mine[:, None] & mask_r, other=0.0)
        b = tl.load(b_ptr + rows_b[:, None] * rank + offs_r[None, :] + r, mask=mask_n[:, None] & mask_r, other=0.0)
        acc = tl.dot(low, tl.trans(b), acc, input_precision="ieee")
    return acc


@triton.jit
def add_low_rank(
    acc, low_ptr, b_ptr, adapter, first, last, offs_m, stride_low_row, offs_n, n_start, stride_b_adapter, rank,
    start_0, stop_0, start_1, stop_1, start_2, stop_2,
    PARTS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Add to a tile of outputs what each row's adapter says: low_ptr at the tile's first row, offs_n its columns from n_start on.

    Adapters present are taken in ascending order and ranks in ascending chunks, so a row's sum has one order whatever its batch-mates.
    """
    for j in tl.range(loop_bound(first), loop_bound(last + 1), num_stages=1):
        is_mine = adapter == j
        # Rows of a sequence lie together: most tiles hold one adapter, and the numbers between two of a mixed tile cost a test.
        if tl.max(is_mine.to(tl.int32), axis=0) > 0:
            b = b_ptr + tl.cast(j, tl.int64) * stride_b_adapter
            if (start_0 < n_start + BLOCK_N) & (n_start < stop_0):
                mask_n = (offs_n >= start_0) & (offs_n < stop_0)
                acc = _add_part(acc, low_ptr, b, is_mine, offs_m, stride_low_row, offs_n, mask_n, rank, BLOCK_R)
            if PARTS > 1:
                if (start_1 < n_start + BLOCK_N) & (n_start < stop_1):
                    mask_n = (offs_n >= start_1) & (offs_n < stop_1)
                    acc = _add_part(acc, low_ptr + rank, b, is_mine, offs_m, stride_low_row, offs_n, mask_n, rank, BLOCK_R)
            if PARTS > 2:
                if (start_2 < n_start + BLOCK_N) & (n_start < stop_2):
                    mask_n = (offs_n >= start_2) & (offs_n < stop_2)
                    acc = _add_part(acc, low_ptr + 2 * rank, b, is_mine, offs_m, stride_low_row, offs_n, mask_n, rank, BLOCK_R)
    return acc
