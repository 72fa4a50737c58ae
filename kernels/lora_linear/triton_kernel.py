"""A GEMM of fixed tiles whose epilogue adds each row's own low-rank update: x A^T comes from a first kernel, B is applied in registers.

The tiles depend on the widths and the dtype only, and no sum is split or reordered, so a row has the same bits whatever else is in the
batch: this is the projection of `batch_invariant`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ahead_of_time import ARCHITECTURES, Compilation
from ..device_math import loop_bound
from ..tile_table import check_names
from .device import adapters_of, add_low_rank
from .reference import LowRankPath, LowRankStack, check_stack, sorted_paths

# From this output width on, 64 x 64 tiles would be more programs than a large GPU holds even for one short canvas.
WIDE = 4096
TILES_WORTH_TIMING = (
    (64, 64, 64, 32, 4, 4),
    (64, 128, 64, 32, 4, 4),
    (128, 64, 64, 32, 4, 4),
    (128, 128, 64, 32, 8, 3),
    (128, 128, 64, 32, 8, 4),
    (128, 256, 64, 32, 8, 3),
)


def launch_config(in_width: int, out_width: int, element_bytes: int) -> dict[str, int]:
    """Tile of the GEMM and of the update in place; never a function of the number of rows, which must not change a row's bits."""
    if element_bytes == 4 or in_width % 16 or out_width % 16:
        # Without tensor cores, or without aligned rows, the operands of a product pass through registers, and larger tiles spill.
        return {"BLOCK_M": 32, "BLOCK_N": 16, "BLOCK_K": 16, "BLOCK_R": 16, "num_warps": 4, "num_stages": 2}
    if out_width >= WIDE:
        return {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 64, "BLOCK_R": 32, "num_warps": 8, "num_stages": 3}
    return {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 64, "BLOCK_R": 32, "num_warps": 4, "num_stages": 4}


def candidates(D: int, W: int, element_bytes: int) -> list[dict[str, int]]:
    """Configurations worth timing for a shape; one that an architecture cannot hold fails at its launch."""
    own = launch_config(D, W, element_bytes)
    names = ("BLOCK_M", "BLOCK_N", "BLOCK_K", "BLOCK_R", "num_warps", "num_stages")
    tiles = [dict(zip(names, tile, strict=True)) for tile in TILES_WORTH_TIMING] if element_bytes == 2 else []
    return [own, *(tile for tile in tiles if tile != own)]


def shrink_config(in_width: int, element_bytes: int) -> dict[str, int]:
    """Tile of x A^T: narrow, because all ranks of all parts together are a few hundred columns."""
    if element_bytes == 4 or in_width % 16:
        return {"BLOCK_M": 32, "BLOCK_L": 16, "BLOCK_K": 16, "num_warps": 4, "num_stages": 2}
    return {"BLOCK_M": 64, "BLOCK_L": 32, "BLOCK_K": 64, "num_warps": 4, "num_stages": 4}


@triton.jit
def _product(
    x_ptr, w_ptr, stride_x_row, stride_w_row, mask_m, mask_n, D,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Return x W^T of one tile in fp32; the pointers stand at its first row and column."""
    offs_m, offs_n, offs_k = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for k in tl.range(0, loop_bound(D), BLOCK_K):
        mask_k = (offs_k < D - k)[None, :]
        x = tl.load(x_ptr + (offs_m[:, None] * stride_x_row + offs_k[None, :]) + k, mask=mask_m[:, None] & mask_k, other=0.0)
        w = tl.load(w_ptr + (offs_n[:, None] * stride_w_row + offs_k[None, :]) + k, mask=mask_n[:, None] & mask_k, other=0.0)
        acc = tl.dot(x, tl.trans(w), acc, input_precision="ieee")
    return acc


@triton.jit
def _shrink_kernel(
    x_ptr, a_ptr, scales_ptr, index_ptr, low_ptr, stride_x_row, stride_a_adapter, N, D, L, rows_each, scale,
    BLOCK_M: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """low = scale * x A^T of each row's adapter, scaled before it is rounded; what a row without one gets is never read."""
    m_start, l_start = tl.program_id(0).to(tl.int64) * BLOCK_M, tl.program_id(1) * BLOCK_L
    offs_m, offs_l = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_L)
    mask_m, mask_l = m_start + offs_m < N, l_start + offs_l < L
    adapter, first, last = adapters_of(index_ptr, m_start + offs_m, mask_m, rows_each)
    low_ptrs = low_ptr + m_start * L + l_start + offs_m[:, None] * L + offs_l[None, :]
    for j in tl.range(loop_bound(first), loop_bound(last + 1), num_stages=1):
        is_mine = adapter == j
        if tl.max(is_mine.to(tl.int32), axis=0) > 0:
            a = a_ptr + tl.cast(j, tl.int64) * stride_a_adapter + l_start.to(tl.int64) * D
            acc = _product(x_ptr + m_start * stride_x_row, a, stride_x_row, D, mask_m, mask_l, D, BLOCK_M, BLOCK_L, BLOCK_K)
            if scales_ptr is not None:
                acc *= tl.load(scales_ptr + j)
            else:
                acc *= scale
            tl.store(low_ptrs, acc.to(low_ptr.dtype.element_ty), mask=is_mine[:, None] & mask_l[None, :])


@triton.jit
def _linear_kernel(
    x_ptr, weight_ptr, bias_ptr, low_ptr, b_ptr, index_ptr, y_ptr,
    stride_x_row, stride_weight_row, stride_b_adapter,
    N, D, W, rank, rows_each, start_0, stop_0, start_1, stop_1, start_2, stop_2,
    PARTS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    # Neighbouring programs share a tile of the weight, the larger operand: it comes from memory once.
    m_start, n_start = tl.program_id(0).to(tl.int64) * BLOCK_M, tl.program_id(1) * BLOCK_N
    offs_m, offs_n = tl.arange(0, BLOCK_M), n_start + tl.arange(0, BLOCK_N)
    mask_m, mask_n = m_start + offs_m < N, offs_n < W
    x_ptr += m_start * stride_x_row
    w = weight_ptr + n_start.to(tl.int64) * stride_weight_row
    acc = _product(x_ptr, w, stride_x_row, stride_weight_row, mask_m, mask_n, D, BLOCK_M, BLOCK_N, BLOCK_K)
    if PARTS > 0:
        adapter, first, last = adapters_of(index_ptr, m_start + offs_m, mask_m, rows_each)
        acc = add_low_rank(
            acc, low_ptr + m_start * (PARTS * rank), b_ptr, adapter, first, last, offs_m, PARTS * rank, offs_n, n_start,
            stride_b_adapter, rank, start_0, stop_0, start_1, stop_1, start_2, stop_2, PARTS, BLOCK_N, BLOCK_R,
        )  # fmt: skip
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + offs_n, mask=mask_n, other=0.0).to(tl.float32)[None, :]
    y_ptrs = y_ptr + m_start * W + offs_m[:, None] * W + offs_n[None, :]
    tl.store(y_ptrs, acc.to(y_ptr.dtype.element_ty), mask=mask_m[:, None] & mask_n[None, :])


@triton.jit
def _expand_kernel(
    low_ptr, b_ptr, index_ptr, y_ptr, stride_b_adapter, stride_y_row,
    N, W, rank, rows_each, start_0, stop_0, start_1, stop_1, start_2, stop_2,
    PARTS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """y += low B^T in place, for a product that a library has made already."""
    m_start, n_start = tl.program_id(0).to(tl.int64) * BLOCK_M, tl.program_id(1) * BLOCK_N
    offs_m, offs_n = tl.arange(0, BLOCK_M), n_start + tl.arange(0, BLOCK_N)
    mask_m, mask_n = m_start + offs_m < N, offs_n < W
    adapter, first, last = adapters_of(index_ptr, m_start + offs_m, mask_m, rows_each)
    if last >= 0:
        y_ptrs = y_ptr + m_start * stride_y_row + offs_m[:, None] * stride_y_row + offs_n[None, :]
        mask = mask_m[:, None] & mask_n[None, :]
        acc = add_low_rank(
            tl.load(y_ptrs, mask=mask, other=0.0).to(tl.float32), low_ptr + m_start * (PARTS * rank), b_ptr, adapter, first, last,
            offs_m, PARTS * rank, offs_n, n_start, stride_b_adapter, rank,
            start_0, stop_0, start_1, stop_1, start_2, stop_2, PARTS, BLOCK_N, BLOCK_R,
        )  # fmt: skip
        tl.store(y_ptrs, acc.to(y_ptr.dtype.element_ty), mask=mask)


def lora_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, paths: Sequence[LowRankPath] = (), stack: LowRankStack | None = None
) -> Tensor:
    """Contract of the reference, for inference: nothing here has a backward pass."""
    return _launch(x, weight, bias, paths, stack, launch_config(weight.shape[1], weight.shape[0], _element_bytes(x)))


def configured(config: Mapping[str, int]) -> Callable[..., Tensor]:
    """Return `lora_linear` with a measured tile in place of `launch_config`'s; ValueError where its names are not those."""
    check_names("lora_linear=triton", config, launch_config(64, 64, 2))

    def measured(
        x: Tensor, weight: Tensor, bias: Tensor | None = None, paths: Sequence[LowRankPath] = (), stack: LowRankStack | None = None
    ) -> Tensor:
        return _launch(x, weight, bias, paths, stack, config)

    return measured


def _launch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    paths: Sequence[LowRankPath],
    stack: LowRankStack | None,
    config: Mapping[str, int],
) -> Tensor:
    if stack is not None:
        check_stack(x, weight, paths, stack)
    rows, weight = _rows(x), weight if weight.stride(1) == 1 else weight.contiguous()
    (N, D), W = rows.shape, weight.shape[0]
    y = torch.empty(*x.shape[:-1], W, dtype=x.dtype, device=x.device)
    if not y.numel():
        return y
    low, b, index, parts = None, None, None, ()
    if stack is not None:
        a, b, scales, index, parts = stack
        low = shrink(rows, a, scales, index)
    with torch.cuda.device_of(x):
        _linear_kernel[(triton.cdiv(N, config["BLOCK_M"]), triton.cdiv(W, config["BLOCK_N"]))](
            rows, weight, bias, low, b, index, y, rows.stride(0), weight.stride(0), 0 if b is None else b.stride(0),
            N, D, W, *_sizes(N, b, index, parts), PARTS=len(parts), **config,
        )  # fmt: skip
    for a, b, scale, start, stop in sorted_paths(weight, paths):
        a, b = a.to(x.dtype).contiguous()[None, None], b.to(x.dtype).contiguous()[None]
        expand_(y.view(N, W)[:, start:stop], shrink(rows, a, scale, None), b, None, ((0, stop - start),))
    return y


def shrink(rows: Tensor, a: Tensor, scales: Tensor | float, index: Tensor | None) -> Tensor:
    """Return scale * x A^T `[N, P * R]` of each row of `[N, D]` in the dtype of x; index None means adapter 0 for all."""
    (N, D), L = rows.shape, a.shape[1] * a.shape[2]
    low = torch.empty(N, L, dtype=rows.dtype, device=rows.device)
    config = shrink_config(D, _element_bytes(rows))
    per_adapter, scale = (scales, 1.0) if isinstance(scales, Tensor) else (None, scales)
    with torch.cuda.device_of(rows):
        _shrink_kernel[(triton.cdiv(N, config["BLOCK_M"]), triton.cdiv(L, config["BLOCK_L"]))](
            rows, a, per_adapter, index, low, rows.stride(0), a.stride(0), N, D, L, N // (1 if index is None else index.numel()), scale,
            **config,
        )  # fmt: skip
    return low


def expand_(y: Tensor, low: Tensor, b: Tensor, index: Tensor | None, parts: tuple[tuple[int, int], ...]) -> None:
    """Add low B^T to y `[N, W]` in place; the last axis of y is contiguous."""
    N, W = y.shape
    config = {name: value for name, value in launch_config(b.shape[-1], W, _element_bytes(y)).items() if name != "BLOCK_K"}
    with torch.cuda.device_of(y):
        _expand_kernel[(triton.cdiv(N, config["BLOCK_M"]), triton.cdiv(W, config["BLOCK_N"]))](
            low, b, index, y, b.stride(0), y.stride(0), N, W, *_sizes(N, b, index, parts), PARTS=len(parts), **config,
        )  # fmt: skip


def _sizes(N: int, b: Tensor | None, index: Tensor | None, parts: tuple[tuple[int, int], ...]) -> tuple[int, ...]:
    """Rank, rows per entry of the index, and the bounds of three parts, empty where there are fewer."""
    bounds = [bound for part in (*parts, (0, 0), (0, 0), (0, 0))[:3] for bound in part]
    return (0 if b is None else b.shape[-1], 1 if index is None else N // index.numel(), *bounds)


def _rows(x: Tensor) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()


def _element_bytes(x: Tensor) -> int:
    # The interpreter pays per operation, not per element: it runs the tiles of 16-bit types.
    return x.element_size() if x.is_cuda else 2


def ahead_of_time() -> list[Compilation]:
    """Fused q, k, v of SmolLM2-135M and Llama-3.1-8B and one part of Llama-3.2-1B everywhere; odd sizes and other dtypes on sm_90."""
    out = []
    for dtype, D, W, R, parts, architectures in (
        ("*bf16", 576, 960, 128, ((0, 576), (576, 768), (768, 960)), ARCHITECTURES),
        ("*bf16", 4096, 6144, 1024, ((0, 4096), (4096, 5120), (5120, 6144)), ARCHITECTURES),
        ("*bf16", 2048, 2048, 16, ((0, 2048),), ARCHITECTURES),
        ("*fp32", 576, 960, 128, ((0, 576), (768, 960)), ARCHITECTURES),
        ("*fp16", 4096, 28672, 64, ((0, 14336), (14336, 28672)), (90,)),
        ("*bf16", 576, 960, 24, ((0, 576), (768, 960)), (90,)),
        ("*bf16", 123, 95, 24, ((0, 33), (80, 95)), (90,)),
    ):
        bytes_each, L = 4 if dtype == "*fp32" else 2, len(parts) * R
        names = ("x_ptr", "weight_ptr", "bias_ptr", "low_ptr", "b_ptr", "y_ptr", "a_ptr")
        pointers = {**dict.fromkeys(names, dtype), "index_ptr": "*i64", "scales_ptr": "*fp32"}
        bounds = [bound for part in (*parts, (0, 0), (0, 0))[:3] for bound in part]
        named = dict(zip(("start_0", "stop_0", "start_1", "stop_1", "start_2", "stop_2"), bounds, strict=True))
        sizes = {"N": 512, "D": D, "W": W, "L": L, "rank": R, "rows_each": 256, "scale": 2.0, **named}
        strides = {"stride_x_row": D, "stride_weight_row": D, "stride_b_adapter": W * R, "stride_a_adapter": L * D, "stride_y_row": W}
        given = {**pointers, **sizes, **strides, "PARTS": len(parts)}
        plain = {**given, "bias_ptr": None, "low_ptr": None, "b_ptr": None, "index_ptr": None, "PARTS": 0, **dict.fromkeys(named, 0)}
        for kernel, arguments in (
            (_linear_kernel, {**given, **launch_config(D, W, bytes_each)}),
            (_linear_kernel, {**plain, **launch_config(D, W, bytes_each)}),
            (_expand_kernel, {**given, **launch_config(R, W, bytes_each)}),
            (_shrink_kernel, {**given, **shrink_config(D, bytes_each)}),
        ):
            # A tile of 32 rows is too small for the warp-group instructions of sm_90.
            out.append(Compilation(kernel, _used(kernel, arguments), arguments["BLOCK_M"] >= 64, architectures))
    return out


def _used(kernel: triton.JITFunction, arguments: dict) -> dict:
    """Keep the arguments of this kernel and the options of its launch."""
    return {name: value for name, value in arguments.items() if name in kernel.arg_names or name.startswith("num_")}
