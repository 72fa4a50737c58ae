"""Decode attention split over keys: every program folds a stretch of one key head's cache, a second kernel merges the stretches.

The first program of a key head rotates and stores the new key and value, and starts its softmax from them: nobody reads them back.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ahead_of_time import ARCHITECTURES, Compilation
from ..device_math import loop_bound
from .reference import check

MAX_HEAD_WIDTH = 128
MAX_STACKED = 16
# A GPU of about 130 multiprocessors holds two programs each; more stretches only make the merge longer.
ENOUGH_PROGRAMS = 256
MAX_SPLITS = 32


def launch_config(capacity: int, groups: int, K: int, element_bytes: int) -> dict[str, int]:
    """Stretches and tile for `groups` key heads in the batch (B * G) with room for `capacity` keys each."""
    block_n = 16 if element_bytes == 4 else 64
    enough = triton.next_power_of_2(max(1, ENOUGH_PROGRAMS // groups))
    splits = min(enough, MAX_SPLITS, triton.next_power_of_2(triton.cdiv(capacity, block_n)))
    return {"SPLITS": splits, "BLOCK_N": block_n, "BLOCK_HALF": max(16, triton.next_power_of_2(K // 2)), "num_warps": 4, "num_stages": 3}


@triton.jit
def _rotated_pair(x_ptrs, mask, half, cos, sin):
    """Load both halves of heads, rotate them and round them to their dtype."""
    first = tl.load(x_ptrs, mask=mask, other=0.0)
    second = tl.load(x_ptrs + half, mask=mask, other=0.0)
    a, b = first.to(tl.float32), second.to(tl.float32)
    return (a * cos - b * sin).to(first.dtype), (b * cos + a * sin).to(first.dtype)


@triton.jit
def _decode_attention_kernel(
    qkv_ptr, positions_ptr, cos_ptr, sin_ptr, keys_ptr, values_ptr, partial_ptr, log_mass_ptr,
    stride_qkv_batch, stride_qkv_head, stride_k_batch, stride_k_position, stride_k_head,
    stride_v_batch, stride_v_position, stride_v_head, stride_table,
    G, heads_per_group, half, scale_log2,
    SPLITS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_HALF: tl.constexpr, MAX_STACKED: tl.constexpr, QUERIES_ALONE: tl.constexpr,
):  # fmt: skip
    split, row = tl.program_id(0), tl.program_id(1)
    b, g = (row // G).to(tl.int64), (row % G).to(tl.int64)
    position = tl.load(positions_ptr + b)
    offs_h, offs_half, offs_n = tl.arange(0, MAX_STACKED), tl.arange(0, BLOCK_HALF), tl.arange(0, BLOCK_N)
    mask_half, mask_h = offs_half < half, offs_h < heads_per_group
    cos = tl.load(cos_ptr + position * stride_table + offs_half, mask=mask_half, other=0.0)[None, :]
    sin = tl.load(sin_ptr + position * stride_table + offs_half, mask=mask_half, other=0.0)[None, :]
    qkv_ptr += b * stride_qkv_batch
    mask_q = mask_h[:, None] & mask_half[None, :]
    q_ptrs = qkv_ptr + (g * heads_per_group + offs_h)[:, None] * stride_qkv_head + offs_half[None, :]
    q_first, q_second = _rotated_pair(q_ptrs, mask_q, half, cos, sin)

    keys_ptr += b * stride_k_batch + g * stride_k_head
    values_ptr += b * stride_v_batch + g * stride_v_head
    H = G * heads_per_group
    top = tl.full([MAX_STACKED], float("-inf"), tl.float32)
    total = tl.zeros([MAX_STACKED], tl.float32)
    acc_first = tl.zeros([MAX_STACKED, BLOCK_HALF], tl.float32)
    acc_second = tl.zeros([MAX_STACKED, BLOCK_HALF], tl.float32)
    # Without a new key the one at the query's position is an ordinary one of the cache.
    cached = position + 1 if QUERIES_ALONE else position
    if split == 0 and not QUERIES_ALONE:
        mask_new = mask_half[None, :]
        k_first, k_second = _rotated_pair(qkv_ptr + (H + g) * stride_qkv_head + offs_half[None, :], mask_new, half, cos, sin)
        v_ptrs = qkv_ptr + (H + G + g) * stride_qkv_head + offs_half[None, :]
        v_first, v_second = tl.load(v_ptrs, mask=mask_new, other=0.0), tl.load(v_ptrs + half, mask=mask_new, other=0.0)
        k_out = keys_ptr + position * stride_k_position + offs_half[None, :]
        v_out = values_ptr + position * stride_v_position + offs_half[None, :]
        tl.store(k_out, k_first, mask=mask_new)
        tl.store(k_out + half, k_second, mask=mask_new)
        tl.store(v_out, v_first, mask=mask_new)
        tl.store(v_out + half, v_second, mask=mask_new)
        product = q_first.to(tl.float32) * k_first.to(tl.float32) + q_second.to(tl.float32) * k_second.to(tl.float32)
        top = tl.sum(product, axis=1) * scale_log2
        total += 1.0
        acc_first += v_first.to(tl.float32)
        acc_second += v_second.to(tl.float32)

    # Stretches follow the sequence's own length, so that a short one in a large cache is shared by all programs too.
    stretch = tl.cdiv(tl.cdiv(cached, SPLITS), BLOCK_N) * BLOCK_N
    n_start = split * stretch
    n_end = tl.minimum(cached, n_start + stretch)
    for n in tl.range(loop_bound(n_start.to(tl.int32)), loop_bound(n_end.to(tl.int32)), BLOCK_N):
        seen = n + offs_n < n_end
        mask_kv = seen[:, None] & mask_half[None, :]
        k_ptrs = keys_ptr + (n + offs_n).to(tl.int64)[:, None] * stride_k_position + offs_half[None, :]
        v_ptrs = values_ptr + (n + offs_n).to(tl.int64)[:, None] * stride_v_position + offs_half[None, :]
        scores = tl.dot(q_first, tl.trans(tl.load(k_ptrs, mask=mask_kv, other=0.0)), input_precision="ieee")
        scores = tl.dot(q_second, tl.trans(tl.load(k_ptrs + half, mask=mask_kv, other=0.0)), scores, input_precision="ieee")
        scores = tl.where(seen[None, :], scores * scale_log2, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, axis=1))
        p = tl.exp2(scores - new_top[:, None])
        shrink = tl.exp2(top - new_top)
        total = total * shrink + tl.sum(p, axis=1)
        v_first = tl.load(v_ptrs, mask=mask_kv, other=0.0)
        v_second = tl.load(v_ptrs + half, mask=mask_kv, other=0.0)
        acc_first = tl.dot(p.to(v_first.dtype), v_first, acc_first * shrink[:, None], input_precision="ieee")
        acc_second = tl.dot(p.to(v_first.dtype), v_second, acc_second * shrink[:, None], input_precision="ieee")
        top = new_top

    # A stretch without keys has no mass, and its zeros count nothing in the merge.
    total_or_one = tl.where(total > 0.0, total, 1.0)
    rows_out = (b * H + g * heads_per_group + offs_h) * SPLITS + split
    out_ptrs = partial_ptr + rows_out[:, None] * (2 * half) + offs_half[None, :]
    tl.store(out_ptrs, (acc_first / total_or_one[:, None]).to(partial_ptr.dtype.element_ty), mask=mask_q)
    tl.store(out_ptrs + half, (acc_second / total_or_one[:, None]).to(partial_ptr.dtype.element_ty), mask=mask_q)
    if SPLITS > 1:
        tl.store(log_mass_ptr + rows_out, top + tl.log2(total_or_one), mask=mask_h)


@triton.jit
def _merge_kernel(partial_ptr, log_mass_ptr, out_ptr, K, SPLITS: tl.constexpr, BLOCK_K: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    offs_s, offs_k = tl.arange(0, SPLITS), tl.arange(0, BLOCK_K)
    mask_k = offs_k < K
    log_mass = tl.load(log_mass_ptr + row * SPLITS + offs_s)
    weight = tl.exp2(log_mass - tl.max(log_mass, axis=0))
    partial_ptrs = partial_ptr + (row * SPLITS + offs_s)[:, None] * K + offs_k[None, :]
    partial = tl.load(partial_ptrs, mask=mask_k[None, :], other=0.0)
    out = tl.sum(partial * weight[:, None], axis=0) / tl.sum(weight, axis=0)
    tl.store(out_ptr + row * K + offs_k, out.to(out_ptr.dtype.element_ty), mask=mask_k)


def decode_attention(
    qkv: Tensor, keys: Tensor, values: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, queries_alone: bool = False
) -> Tensor:
    """Contract of the reference; K is at most MAX_HEAD_WIDTH and H/G at most MAX_STACKED. Slots nobody wrote are never read."""
    H, G, K = check(qkv, keys, values, positions, cos, queries_alone)
    B, C = keys.shape[:2]
    if K > MAX_HEAD_WIDTH or H // G > MAX_STACKED:
        raise ValueError(
            f"decode_attention: head width is {K} and heads per group {H // G}, expected at most {MAX_HEAD_WIDTH} and {MAX_STACKED}. "
            "Use --ops decode_attention=sdpa."
        )
    if min(t.stride(-1) for t in (keys, values)) != 1 or max(t.stride(-1) for t in (keys, values)) != 1:
        raise ValueError(f"decode_attention: keys and values have strides {keys.stride()}, {values.stride()}, expected 1 on the last axis.")
    qkv, cos, sin = (t if t.stride(-1) == 1 else t.contiguous() for t in (qkv, cos, sin))
    out = torch.empty(B, H, K, dtype=qkv.dtype, device=qkv.device)
    if not out.numel():
        return out
    config = launch_config(C, B * G, K, qkv.element_size() if qkv.is_cuda else 2)
    splits = config["SPLITS"]
    partial = torch.empty(B, H, splits, K, dtype=torch.float32, device=qkv.device) if splits > 1 else out
    log_mass = torch.empty(B, H, splits, dtype=torch.float32, device=qkv.device) if splits > 1 else None
    # exp(x) = exp2(x log2(e)): the hardware has only the second.
    scale_log2 = K**-0.5 / math.log(2.0)
    with torch.cuda.device_of(qkv):
        _decode_attention_kernel[(splits, B * G)](
            qkv, positions, cos, sin, keys, values, partial, log_mass,
            *qkv.stride()[:2], *keys.stride()[:3], *values.stride()[:3], cos.stride(0),
            G, H // G, K // 2, scale_log2, MAX_STACKED=MAX_STACKED, QUERIES_ALONE=queries_alone, **config,
        )  # fmt: skip
        if splits > 1:
            _merge_kernel[(B * H,)](partial, log_mass, out, K, SPLITS=splits, BLOCK_K=triton.next_power_of_2(K), num_warps=2)
    return out


def ahead_of_time() -> list[Compilation]:
    """Llama-3.2-1B and 3.1-8B everywhere; SmolLM2-135M, Phi-3-mini's 96-wide head, one stretch, fp16 and fp32 on sm_90."""
    out = []
    for dtype, B, C, H, G, K, architectures in (
        ("*bf16", 1, 512, 32, 8, 64, ARCHITECTURES),
        ("*bf16", 1, 2048, 32, 8, 128, ARCHITECTURES),
        ("*bf16", 1, 512, 9, 3, 64, (90,)),
        ("*bf16", 8, 2048, 32, 32, 96, (90,)),
        ("*fp16", 1, 32, 4, 1, 128, (90,)),
        ("*fp32", 2, 512, 4, 4, 128, (80, 90)),
    ):
        config = launch_config(C, B * G, K, 4 if dtype == "*fp32" else 2)
        splits, N = config["SPLITS"], H + 2 * G
        pointers = {**dict.fromkeys(("qkv_ptr", "keys_ptr", "values_ptr"), dtype), **dict.fromkeys(("cos_ptr", "sin_ptr"), "*fp32")}
        partial = {"partial_ptr": "*fp32" if splits > 1 else dtype, "log_mass_ptr": "*fp32" if splits > 1 else None}
        strides = {"stride_qkv_batch": N * K, "stride_qkv_head": K, "stride_table": K // 2}
        for name in ("k", "v"):
            strides.update({f"stride_{name}_batch": C * G * K, f"stride_{name}_position": G * K, f"stride_{name}_head": K})
        sizes = {"G": G, "heads_per_group": H // G, "half": K // 2, "scale_log2": 0.18, "MAX_STACKED": MAX_STACKED, "QUERIES_ALONE": False}
        arguments = {**pointers, "positions_ptr": "*i64", **partial, **strides, **sizes, **config}
        # A tile of 16 queries is too small for the warp-group instructions of sm_90 and later.
        out.append(Compilation(_decode_attention_kernel, arguments, architectures=architectures))
    alone = {**out[0].arguments, "QUERIES_ALONE": True, "stride_qkv_batch": 32 * 64}
    out.append(Compilation(_decode_attention_kernel, alone))
    merge = {"partial_ptr": "*fp32", "log_mass_ptr": "*fp32", "out_ptr": "*bf16", "K": 64, "SPLITS": 32, "BLOCK_K": 64, "num_warps": 2}
    return [*out, Compilation(_merge_kernel, merge), Compilation(_merge_kernel, {**merge, "K": 96, "BLOCK_K": 128}, architectures=(90,))]
