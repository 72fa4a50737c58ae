"""Flash attention, one program per block of queries: the query heads that share a key head are stacked as rows of one tile."""

from __future__ import annotations

import functools
import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ahead_of_time import ARCHITECTURES, Compilation
from ..device_math import loop_bound
from .device import fold_block

MAX_HEAD_WIDTH = 128
# Fewer programs than this leave much of a GPU of about 130 multiprocessors idle; smaller tiles then spread the work.
ENOUGH_PROGRAMS = 96


def launch_config(rows: int, groups: int, K: int, element_bytes: int, architecture: int) -> dict[str, int]:
    """Tile for `rows` stacked queries (T * H/G) of `groups` key heads in the batch (B * G), on sm_`architecture`.

    No tile spills. Only data-centre GPUs from sm_90 to sm_110 get tiles of more than 99 KB, all the shared memory the others have.
    """
    block_k = max(16, triton.next_power_of_2(K))
    has_few_programs = triton.cdiv(rows, 128) * groups < ENOUGH_PROGRAMS
    if element_bytes == 4:
        # Without tensor cores the operands of a product live in registers, and larger tiles spill.
        block_m, block_n, warps, stages = 16, 16, 4, 1
    elif rows <= 16:
        block_m, block_n, warps, stages = 16, 64, 4, 3
    elif 90 <= architecture < 120:
        # wgmma and tcgen05 read both operands from shared memory, which leaves registers for the scores.
        large = (128, 128, 8, 2) if block_k <= 64 else (128, 64, 8, 3)
        block_m, block_n, warps, stages = (64, 64, 4, 3) if has_few_programs else large
    elif block_k <= 64:
        block_m, block_n, warps, stages = (64, 64, 4, 3) if has_few_programs else (128, 64, 8, 3)
    else:
        # mma.sync keeps queries, keys and the sum in registers: 64 keys of this width spill on sm_89.
        block_m, block_n, warps, stages = 64, 32, 4, 3
    return {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k, "num_warps": warps, "num_stages": stages}


@triton.jit
def _attend_block(
    q, k_ptr, v_ptr, stride_k, stride_v, acc, total, top, offs_n, last_key, n, n_end, offs_k, scale_log2,
    K: tl.constexpr, BLOCK_K: tl.constexpr, IS_CAUSAL: tl.constexpr, IS_MASKED: tl.constexpr,
):  # fmt: skip
    """Fold one block of keys into the running softmax; only a block that ends or crosses the diagonal is masked."""
    # The loop carries one 64-bit base; a tile of pointers carried along would spill.
    k_ptrs = k_ptr + (offs_n[:, None] * stride_k + offs_k[None, :])
    v_ptrs = v_ptr + (offs_n[:, None] * stride_v + offs_k[None, :])
    if IS_MASKED:
        mask_kv = (n + offs_n < n_end)[:, None] & (offs_k < K)[None, :]
        k = tl.load(k_ptrs, mask=mask_kv, other=0.0)
        v = tl.load(v_ptrs, mask=mask_kv, other=0.0)
    elif K < BLOCK_K:
        k = tl.load(k_ptrs, mask=(offs_k < K)[None, :], other=0.0)
        v = tl.load(v_ptrs, mask=(offs_k < K)[None, :], other=0.0)
    else:
        k = tl.load(k_ptrs)
        v = tl.load(v_ptrs)
    scores = tl.dot(q, tl.trans(k), input_precision="ieee")
    if IS_MASKED:
        visible = (n + offs_n < n_end)[None, :]
        if IS_CAUSAL:
            visible = visible & (n + offs_n[None, :] <= last_key[:, None])
        scores = tl.where(visible, scores, float("-inf"))
    return fold_block(scores, v, acc, total, top, scale_log2)


@triton.jit
def _attention_kernel(
    q_ptr, k_ptr, v_ptr, lengths_ptr, out_ptr,
    stride_q_batch, stride_q_position, stride_q_head,
    stride_k_batch, stride_k_position, stride_k_head,
    stride_v_batch, stride_v_position, stride_v_head,
    T, S, G, heads_per_group, scale_log2,
    K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, IS_CAUSAL: tl.constexpr,
):  # fmt: skip
    m_start = tl.program_id(0) * BLOCK_M
    b, g = (tl.program_id(1) // G).to(tl.int64), (tl.program_id(1) % G).to(tl.int64)
    offs_m, offs_n, offs_k = m_start + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    t, h = offs_m // heads_per_group, g * heads_per_group + offs_m % heads_per_group
    mask_q = (t < T)[:, None] & (offs_k < K)[None, :]
    rows_q = b * stride_q_batch + t.to(tl.int64) * stride_q_position + h * stride_q_head
    q = tl.load(q_ptr + rows_q[:, None] + offs_k[None, :], mask=mask_q, other=0.0)

    n_end = S
    if lengths_ptr is not None:
        n_end = tl.minimum(S, tl.load(lengths_ptr + b).to(tl.int32))
    n_full = n_end
    last_key = t + (S - T)
    if IS_CAUSAL:
        n_full = tl.minimum(n_end, m_start // heads_per_group + (S - T) + 1)
        n_end = tl.minimum(n_end, tl.minimum(T - 1, (m_start + BLOCK_M - 1) // heads_per_group) + (S - T) + 1)
    n_full = n_full // BLOCK_N * BLOCK_N

    k_ptr += b * stride_k_batch + g * stride_k_head
    v_ptr += b * stride_v_batch + g * stride_v_head
    acc = tl.zeros([BLOCK_M, BLOCK_K], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    for n in tl.range(0, loop_bound(n_full), BLOCK_N):
        acc, total, top = _attend_block(
            q, k_ptr, v_ptr, stride_k_position, stride_v_position, acc, total, top, offs_n, last_key, n, n_end, offs_k, scale_log2,
            K, BLOCK_K, IS_CAUSAL, False,
        )  # fmt: skip
        k_ptr += BLOCK_N * stride_k_position
        v_ptr += BLOCK_N * stride_v_position
    # Mostly one block: there is nothing to load ahead.
    for n in tl.range(loop_bound(n_full), loop_bound(n_end), BLOCK_N, num_stages=1):
        acc, total, top = _attend_block(
            q, k_ptr, v_ptr, stride_k_position, stride_v_position, acc, total, top, offs_n, last_key, n, n_end, offs_k, scale_log2,
            K, BLOCK_K, IS_CAUSAL, True,
        )  # fmt: skip
        k_ptr += BLOCK_N * stride_k_position
        v_ptr += BLOCK_N * stride_v_position

    rows_out = ((b * T + t) * G * heads_per_group + h) * K
    out = acc / total[:, None]
    tl.store(out_ptr + rows_out[:, None] + offs_k[None, :], out.to(out_ptr.dtype.element_ty), mask=mask_q)


def attention(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None = None, is_causal: bool = False) -> Tensor:
    """Contract of the reference; K is at most MAX_HEAD_WIDTH. No mask and no scores are ever in memory."""
    B, T, H, K = q.shape
    S, G = k.shape[1], k.shape[2]
    if k.shape != v.shape or k.shape[0] != B or k.shape[3] != K or H % G or S < T:
        shapes = tuple(tuple(t.shape) for t in (q, k, v))
        raise ValueError(f"attention: q, k, v are {shapes}, expected [B, T, H, K] and twice [B, S, G, K] with S >= T.")
    if K > MAX_HEAD_WIDTH:
        raise ValueError(f"attention: the head width is {K}, expected at most {MAX_HEAD_WIDTH}. Use --ops attention=sdpa.")
    q, k, v = (t if t.stride(3) == 1 else t.contiguous() for t in (q, k, v))
    out = torch.empty(B, T, H, K, dtype=q.dtype, device=q.device)
    if out.numel():
        rows, groups = T * (H // G), B * G
        # The interpreter pays per operation, not per element: it runs the tiles of 16-bit types.
        config = launch_config(rows, groups, K, q.element_size() if q.is_cuda else 2, architecture_of(q.device))
        # exp(x) = exp2(x log2(e)): the hardware has only the second.
        scale_log2 = K**-0.5 / math.log(2.0)
        with torch.cuda.device_of(q):
            _attention_kernel[(triton.cdiv(rows, config["BLOCK_M"]), groups)](
                q, k, v, None if lengths is None else lengths.contiguous(), out, *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
                T, S, G, H // G, scale_log2, K=K, IS_CAUSAL=is_causal, **config,
            )  # fmt: skip
    return out


@functools.cache
def architecture_of(device: torch.device) -> int:
    """Return the compute capability as a launch configuration takes it (90 for sm_90); the interpreter runs the tiles of sm_90."""
    if device.type != "cuda":
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def ahead_of_time() -> list[Compilation]:
    """Every tile and head width in the shapes of SmolLM2-135M, Llama 3 and Phi-3-mini, bidirectional and causal."""
    everywhere = (
        # dtype, B, T, S, H, G, K, has_lengths, is_causal
        ("*bf16", 1, 256, 256, 9, 3, 64, False, False),
        ("*bf16", 8, 512, 512, 32, 8, 64, True, False),
        ("*bf16", 1, 256, 256, 32, 8, 128, True, False),
        ("*bf16", 8, 512, 512, 32, 8, 128, True, False),
        ("*bf16", 1, 1, 512, 32, 8, 128, False, True),
        ("*fp32", 1, 65, 65, 4, 4, 128, True, True),
    )
    # Tiles of the list above, with another dtype, mask or padding, and every size baked in as 1.
    on_hopper = (
        ("*bf16", 8, 512, 512, 32, 8, 64, True, True),
        ("*bf16", 8, 512, 512, 32, 8, 128, True, True),
        ("*bf16", 8, 512, 512, 32, 32, 96, True, False),
        ("*fp16", 8, 512, 512, 32, 8, 128, True, False),
        ("*bf16", 1, 1, 1, 1, 1, 64, False, False),
    )
    out = [_compilation(*shape, architecture) for shape in everywhere for architecture in ARCHITECTURES]
    return [*out, *(_compilation(*shape, 90) for shape in on_hopper)]


def _compilation(
    dtype: str, B: int, T: int, S: int, H: int, G: int, K: int, has_lengths: bool, is_causal: bool, architecture: int
) -> Compilation:
    packed = (H + 2 * G) * K
    pointers = {**dict.fromkeys(("q_ptr", "k_ptr", "v_ptr", "out_ptr"), dtype), "lengths_ptr": "*i64" if has_lengths else None}
    strides = {}
    for name, positions in (("q", T), ("k", S), ("v", S)):
        strides.update({f"stride_{name}_batch": positions * packed, f"stride_{name}_position": packed, f"stride_{name}_head": K})
    sizes = {"T": T, "S": S, "G": G, "heads_per_group": H // G, "scale_log2": 0.18, "K": K, "IS_CAUSAL": is_causal}
    config = launch_config(T * (H // G), B * G, K, 4 if dtype == "*fp32" else 2, architecture)
    # A tile of 16 queries is too small for the warp-group instructions of sm_90 and later.
    is_matrix = dtype != "*fp32" and (config["BLOCK_M"] >= 64 or architecture < 90)
    return Compilation(_attention_kernel, {**pointers, **strides, **sizes, **config}, is_matrix, (architecture,))
