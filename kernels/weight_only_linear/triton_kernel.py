"""y^T = W x^T: weights are widened in registers, whence tensor cores take their left operand; x comes from shared memory."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ahead_of_time import ARCHITECTURES, Compilation
from ..device_math import loop_bound
from .reference import check_weight

# Programs that share rows of x follow each other, this many blocks of weights at a time, so that both stay in the L2 cache.
GROUP = 8
MANY = 1 << 20


def launch_config(rows: int, K: int, element_bytes: int) -> dict[str, int]:
    """Tile for `rows` rows of x of width K; N counts weights' rows, M those of x."""
    if element_bytes == 4:
        # Without tensor cores the operands of a product live in registers, and larger tiles spill.
        return {"BLOCK_M": 16, "BLOCK_N": 32, "BLOCK_K": 32, "num_warps": 4, "num_stages": 2}
    if K % 16:
        # Loads of single values need an address each: larger tiles spill.
        return {"BLOCK_M": 32, "BLOCK_N": 64, "BLOCK_K": 32, "num_warps": 4, "num_stages": 2}
    if rows <= 32:
        return {"BLOCK_M": 32, "BLOCK_N": 64, "BLOCK_K": 128, "num_warps": 4, "num_stages": 4}
    return {"BLOCK_M": 64 if rows <= 64 else 128, "BLOCK_N": 128, "BLOCK_K": 64, "num_warps": 8, "num_stages": 3}


@triton.jit
def _weight_only_linear_kernel(
    x_ptr, weight_ptr, scale_ptr, bias_ptr, out_ptr, stride_x_row, M, N, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_N: tl.constexpr,
):  # fmt: skip
    blocks_m, blocks_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    index = tl.program_id(0)
    first_n = index // (GROUP_N * blocks_m) * GROUP_N
    members = tl.minimum(blocks_n - first_n, GROUP_N)
    block_n = first_n + index % (GROUP_N * blocks_m) % members
    block_m = index % (GROUP_N * blocks_m) // members
    offs_m = block_m.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = block_n.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_k = tl.arange(0, BLOCK_K)
    # Rows beyond the end repeat the last and are not stored, so that no load is masked by them.
    weight_ptrs = weight_ptr + tl.minimum(offs_n, N - 1)[:, None] * K + offs_k[None, :]
    x_ptrs = x_ptr + offs_k[:, None] + tl.minimum(offs_m, M - 1)[None, :] * stride_x_row
    acc = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
    for start in tl.range(0, loop_bound(tl.cdiv(K, BLOCK_K) * BLOCK_K), BLOCK_K):
        inside = start + offs_k < K
        weight = tl.load(weight_ptrs + start, mask=inside[None, :], other=0).to(x_ptr.dtype.element_ty)
        x = tl.load(x_ptrs + start, mask=inside[:, None], other=0.0)
        acc = tl.dot(weight, x, acc, input_precision="ieee")
    mask_n = offs_n < N
    y = acc * tl.load(scale_ptr + offs_n, mask=mask_n, other=0.0)[:, None]
    if bias_ptr is not None:
        y += tl.load(bias_ptr + offs_n, mask=mask_n, other=0.0).to(tl.float32)[:, None]
    out_ptrs = out_ptr + offs_m[:, None] * N + offs_n[None, :]
    tl.store(out_ptrs, tl.trans(y).to(out_ptr.dtype.element_ty), mask=(offs_m < M)[:, None] & mask_n[None, :])


def weight_only_linear(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """Contract of the reference."""
    rows = x.numel() // max(x.shape[-1], 1)
    return _launch(x, weight, weight_scale, bias, launch_config(rows, weight.shape[1], x.element_size()))


def invariant(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """Contract of the reference; a row has the same bits whatever rows are beside it."""
    return _launch(x, weight, weight_scale, bias, launch_config(MANY, weight.shape[1], x.element_size()))


def _launch(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, config: dict[str, int]) -> Tensor:
    check_weight(x, weight, weight_scale)
    N, K = weight.shape
    rows = x.reshape(-1, K)
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    M = rows.shape[0]
    out = torch.empty(*x.shape[:-1], N, dtype=x.dtype, device=x.device)
    if out.numel():
        grid = (triton.cdiv(M, config["BLOCK_M"]) * triton.cdiv(N, config["BLOCK_N"]),)
        with torch.cuda.device_of(rows):
            _weight_only_linear_kernel[grid](
                rows, weight.contiguous(), weight_scale, bias, out, rows.stride(0), M, N, K, GROUP_N=GROUP, **config
            )
    return out


def ahead_of_time() -> list[Compilation]:
    """Every tile at the widths of Llama-3.1-8B everywhere; a bias (Qwen2), SmolLM2-135M, odd widths and another dtype on sm_90."""
    out = []
    for dtype, M, K, N, has_bias, architectures in (
        ("*bf16", 512, 4096, 6144, False, ARCHITECTURES),
        ("*bf16", 64, 4096, 6144, False, ARCHITECTURES),
        ("*bf16", 16, 4096, 4096, False, ARCHITECTURES),
        ("*bf16", 256, 1536, 2048, True, (90,)),
        ("*fp16", 256, 576, 960, False, (90,)),
        ("*bf16", 123, 123, 123, False, (90,)),
        ("*fp32", 256, 576, 960, False, (90,)),
    ):
        pointers = {"x_ptr": dtype, "weight_ptr": "*i8", "scale_ptr": "*fp32", "bias_ptr": dtype if has_bias else None, "out_ptr": dtype}
        sizes = {"stride_x_row": K, "M": M, "N": N, "K": K, "GROUP_N": GROUP, **launch_config(M, K, 4 if dtype == "*fp32" else 2)}
        out.append(Compilation(_weight_only_linear_kernel, {**pointers, **sizes}, is_matrix=dtype != "*fp32", architectures=architectures))
    return out
