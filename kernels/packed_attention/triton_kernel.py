"""Flash attention from the packed projection: queries are rotated once in registers, keys as they are read or in a pass before.

A head's two halves stay apart (scores = q1 k1^T + q2 k2^T), so that a rotation exchanges nothing between threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ahead_of_time import ARCHITECTURES, Compilation
from ..attention.device import fold_block
from ..attention.triton_kernel import ENOUGH_PROGRAMS, MAX_HEAD_WIDTH, architecture_of
from ..attention.triton_kernel import launch_config as attention_tile
from ..device_math import loop_bound
from ..rotary.device import rotated
from ..rotary.triton_kernel import rotary
from ..tile_table import check_names
from .reference import check_packed

# A pass over the keys costs a launch, about 2 us; turning them on the way in costs each program about as much per 512 keys. Both are
# estimates from instruction counts: a measured table (tuned/) goes before this.
KEYS_WORTH_A_PASS = 512
MULTIPROCESSORS = 132
TILES_WORTH_TIMING = ((64, 64, 4, 3), (64, 64, 8, 2), (64, 128, 4, 2), (128, 64, 8, 2), (128, 64, 8, 3), (128, 128, 8, 2))
MANY = 1 << 20


def launch_config(B: int, T: int, H: int, G: int, K: int, element_bytes: int, architecture: int) -> dict[str, int]:
    """Tile for `[B, T, H + 2 G, K]` on sm_`architecture`, and ROTATES_KEYS: whether keys are turned as they are read.

    Every program turns all keys of its group again, so a pass of its own pays once there are many keys or several programs in a row.
    """
    rows, groups = T * (H // G), B * G
    config = _tile(rows, groups, K, element_bytes, architecture)
    rounds = triton.cdiv(triton.cdiv(rows, config["BLOCK_M"]) * groups, MULTIPROCESSORS)
    # mma.sync and plain fp32 products keep their operands in registers, where a rotation beside them spills.
    if element_bytes == 4 or not 90 <= architecture < 120 or T * rounds > KEYS_WORTH_A_PASS:
        return config
    warps = 8 if K > 64 and rows > 16 else config["num_warps"]
    # The tables of a block of keys come along in fp32, twice the bytes of the keys: fewer stages fit, and 128 keys spill (Triton 3.9).
    return {**config, "BLOCK_N": 64, "num_warps": warps, "num_stages": 2, "ROTATES_KEYS": True}


def fixed_config(K: int, element_bytes: int, architecture: int) -> dict[str, int]:
    """The one tile of a head width and dtype: a row's sums are made in the same order whatever the batch and the bucket."""
    return _tile(MANY, MANY, K, element_bytes, architecture)


def candidates(B: int, T: int, H: int, G: int, K: int, element_bytes: int, architecture: int) -> list[dict[str, int]]:
    """Configurations worth timing for a shape; one that an architecture cannot hold fails at its launch."""
    own = launch_config(B, T, H, G, K, element_bytes, architecture)
    out = [own]
    for block_m, block_n, warps, stages in TILES_WORTH_TIMING:
        for rotates in (False, True):
            tile = {"BLOCK_M": block_m, "BLOCK_N": block_n, "num_warps": warps, "num_stages": stages, "ROTATES_KEYS": rotates}
            if {**own, **tile} not in out:
                out.append({**own, **tile})
    return out


def _tile(rows: int, groups: int, K: int, element_bytes: int, architecture: int) -> dict[str, int]:
    config = attention_tile(rows, groups, K, element_bytes, architecture)
    half = max(16, triton.next_power_of_2(K // 2))
    if half > 32 and element_bytes == 4:
        config["num_warps"] = 8
    elif half > 32 and rows > 16 and not 90 <= architecture < 120:
        # Two half-width products keep more in registers than attention's one: narrower tiles.
        has_few_programs = triton.cdiv(rows, 128) * groups < ENOUGH_PROGRAMS
        config["BLOCK_M"], config["BLOCK_N"], config["num_warps"] = (32, 32, 4) if has_few_programs else (128, 32, 8)
    return {**config, "BLOCK_HALF": half, "BLOCK_K": 2 * half, "ROTATES_KEYS": False}


@triton.jit
def _fold_keys(
    q1, q2, k_ptr, v_ptr, cos_ptr, sin_ptr, stride_k, stride_v, stride_cos, stride_sin,
    acc, total, top, offs_n, n, n_end, offs_half, offs_k, scale_log2,
    K: tl.constexpr, HALF: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_HALF: tl.constexpr,
    ROTATES_KEYS: tl.constexpr, IS_LAST: tl.constexpr,
):  # fmt: skip
    """Fold one block of keys into the running softmax; only the block in which a sequence ends is masked by row."""
    k_ptrs = k_ptr + (offs_n[:, None] * stride_k + offs_half[None, :])
    v_ptrs = v_ptr + (offs_n[:, None] * stride_v + offs_k[None, :])
    is_key = (n + offs_n < n_end)[:, None]
    if IS_LAST:
        mask_half = is_key & (offs_half < HALF)[None, :]
        k1 = tl.load(k_ptrs, mask=mask_half, other=0.0)
        k2 = tl.load(k_ptrs + HALF, mask=mask_half, other=0.0)
        v = tl.load(v_ptrs, mask=is_key & (offs_k < K)[None, :], other=0.0)
    elif HALF < BLOCK_HALF:
        mask_half = (offs_half < HALF)[None, :]
        k1 = tl.load(k_ptrs, mask=mask_half, other=0.0)
        k2 = tl.load(k_ptrs + HALF, mask=mask_half, other=0.0)
        v = tl.load(v_ptrs, mask=(offs_k < K)[None, :], other=0.0)
    else:
        k1 = tl.load(k_ptrs)
        k2 = tl.load(k_ptrs + HALF)
        v = tl.load(v_ptrs)
    if ROTATES_KEYS:
        cos_ptrs = cos_ptr + (offs_n[:, None] * stride_cos + offs_half[None, :])
        sin_ptrs = sin_ptr + (offs_n[:, None] * stride_sin + offs_half[None, :])
        if IS_LAST or HALF < BLOCK_HALF:
            cos, sin = tl.load(cos_ptrs, mask=mask_half, other=0.0), tl.load(sin_ptrs, mask=mask_half, other=0.0)
        else:
            cos, sin = tl.load(cos_ptrs), tl.load(sin_ptrs)
        k1, k2 = rotated(k1, k2, cos, sin, v.dtype)
    scores = tl.dot(q1, tl.trans(k1), input_precision="ieee")
    scores = tl.dot(q2, tl.trans(k2), scores, input_precision="ieee")
    if IS_LAST:
        scores = tl.where((n + offs_n < n_end)[None, :], scores, float("-inf"))
    return fold_block(scores, v, acc, total, top, scale_log2)


@triton.jit
def _packed_attention_kernel(
    q_ptr, k_ptr, v_ptr, cos_ptr, sin_ptr, lengths_ptr, out_ptr,
    stride_q_batch, stride_q_position, stride_q_head,
    stride_k_batch, stride_k_position, stride_k_head,
    stride_v_batch, stride_v_position, stride_v_head,
    stride_cos_position, stride_sin_position,
    T, G, heads_per_group, scale_log2,
    K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_HALF: tl.constexpr,
    ROTATES_KEYS: tl.constexpr,
):  # fmt: skip
    HALF: tl.constexpr = K // 2
    b, g = (tl.program_id(1) // G).to(tl.int64), (tl.program_id(1) % G).to(tl.int64)
    offs_m, offs_n = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    offs_half, offs_k = tl.arange(0, BLOCK_HALF), tl.arange(0, BLOCK_K)
    # The query heads that share a key head are stacked as rows of one tile.
    t, h = offs_m // heads_per_group, g * heads_per_group + offs_m % heads_per_group
    mask_q = (t < T)[:, None] & (offs_half < HALF)[None, :]
    rows_q = b * stride_q_batch + t.to(tl.int64) * stride_q_position + h * stride_q_head
    q_ptrs = q_ptr + rows_q[:, None] + offs_half[None, :]
    cos = tl.load(cos_ptr + (t * stride_cos_position)[:, None] + offs_half[None, :], mask=mask_q, other=0.0)
    sin = tl.load(sin_ptr + (t * stride_sin_position)[:, None] + offs_half[None, :], mask=mask_q, other=0.0)
    first, second = tl.load(q_ptrs, mask=mask_q, other=0.0), tl.load(q_ptrs + HALF, mask=mask_q, other=0.0)
    q1, q2 = rotated(first, second, cos, sin, q_ptr.dtype.element_ty)

    n_end = T
    if lengths_ptr is not None:
        n_end = tl.minimum(T, tl.load(lengths_ptr + b).to(tl.int32))
    n_full = n_end // BLOCK_N * BLOCK_N
    k_ptr += b * stride_k_batch + g * stride_k_head
    v_ptr += b * stride_v_batch + g * stride_v_head
    acc = tl.zeros([BLOCK_M, BLOCK_K], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    for n in tl.range(0, loop_bound(n_full), BLOCK_N):
        acc, total, top = _fold_keys(
            q1, q2, k_ptr, v_ptr, cos_ptr, sin_ptr, stride_k_position, stride_v_position, stride_cos_position, stride_sin_position,
            acc, total, top, offs_n, n, n_end, offs_half, offs_k, scale_log2, K, HALF, BLOCK_K, BLOCK_HALF, ROTATES_KEYS, False,
        )  # fmt: skip
        k_ptr += BLOCK_N * stride_k_position
        v_ptr += BLOCK_N * stride_v_position
        cos_ptr += BLOCK_N * stride_cos_position
        sin_ptr += BLOCK_N * stride_sin_position
    if n_full < n_end:
        acc, total, top = _fold_keys(
            q1, q2, k_ptr, v_ptr, cos_ptr, sin_ptr, stride_k_position, stride_v_position, stride_cos_position, stride_sin_position,
            acc, total, top, offs_n, n_full, n_end, offs_half, offs_k, scale_log2, K, HALF, BLOCK_K, BLOCK_HALF, ROTATES_KEYS, True,
        )  # fmt: skip

    rows_out = ((b * T + t) * G * heads_per_group + h) * K
    mask_out = (t < T)[:, None] & (offs_k < K)[None, :]
    out = acc / total[:, None]
    tl.store(out_ptr + rows_out[:, None] + offs_k[None, :], out.to(out_ptr.dtype.element_ty), mask=mask_out)


def packed_attention(qkv: Tensor, cos: Tensor, sin: Tensor, query_heads: int, kv_heads: int, lengths: Tensor | None = None) -> Tensor:
    """Contract of the reference; K is even and at most MAX_HEAD_WIDTH. No mask and no scores are ever in memory."""
    B, T, _, K = qkv.shape
    config = launch_config(B, T, query_heads, kv_heads, K, *_target(qkv))
    return _launch(qkv, cos, sin, query_heads, kv_heads, lengths, config)


def invariant(qkv: Tensor, cos: Tensor, sin: Tensor, query_heads: int, kv_heads: int, lengths: Tensor | None = None) -> Tensor:
    """Contract of the reference; a row has the same bits alone, in any batch and in any bucket that holds its sequence."""
    return _launch(qkv, cos, sin, query_heads, kv_heads, lengths, fixed_config(qkv.shape[3], *_target(qkv)))


def configured(config: Mapping[str, int]) -> Callable[..., Tensor]:
    """Return `packed_attention` with a measured tile in place of `launch_config`'s; ValueError where its names are not those."""
    check_names("packed_attention=triton", config, launch_config(1, 1, 1, 1, 64, 2, 90))

    def measured(qkv: Tensor, cos: Tensor, sin: Tensor, query_heads: int, kv_heads: int, lengths: Tensor | None = None) -> Tensor:
        return _launch(qkv, cos, sin, query_heads, kv_heads, lengths, config)

    return measured


def _launch(
    qkv: Tensor, cos: Tensor, sin: Tensor, query_heads: int, kv_heads: int, lengths: Tensor | None, config: Mapping[str, int]
) -> Tensor:
    check_packed(qkv, cos, sin, query_heads, kv_heads)
    B, T, _, K = qkv.shape
    if K > MAX_HEAD_WIDTH or K % 2:
        raise ValueError(
            f"packed_attention: the head width is {K}, expected an even one of at most {MAX_HEAD_WIDTH}. Use --ops packed_attention=sdpa."
        )
    qkv, cos, sin = (t if t.stride(-1) == 1 else t.contiguous() for t in (qkv, cos, sin))
    out = torch.empty(B, T, query_heads, K, dtype=qkv.dtype, device=qkv.device)
    if out.numel():
        q, k, v = qkv.split((query_heads, kv_heads, kv_heads), dim=2)
        if not config["ROTATES_KEYS"]:
            k = rotary(k, cos, sin)
        heads_per_group, groups = query_heads // kv_heads, B * kv_heads
        # exp(x) = exp2(x log2(e)): the hardware has only the second.
        scale_log2 = K**-0.5 / math.log(2.0)
        with torch.cuda.device_of(qkv):
            _packed_attention_kernel[(triton.cdiv(T * heads_per_group, config["BLOCK_M"]), groups)](
                q, k, v, cos, sin, None if lengths is None else lengths.contiguous(), out,
                *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], cos.stride(0), sin.stride(0),
                T, kv_heads, heads_per_group, scale_log2, K=K, **config,
            )  # fmt: skip
    return out


def _target(qkv: Tensor) -> tuple[int, int]:
    # The interpreter pays per operation, not per element: it runs the tiles of 16-bit types.
    return qkv.element_size() if qkv.is_cuda else 2, architecture_of(qkv.device)


def ahead_of_time() -> list[Compilation]:
    """Every tile in the shapes of SmolLM2-135M, Llama 3 and Phi-3-mini, keys rotated in the kernel and before it."""
    everywhere = (
        # dtype, B, T, H, G, K, has_lengths
        ("*bf16", 1, 256, 9, 3, 64, False),
        ("*bf16", 1, 256, 32, 8, 64, True),
        ("*bf16", 8, 512, 32, 8, 64, True),
        ("*bf16", 1, 256, 32, 8, 128, True),
        ("*bf16", 8, 512, 32, 8, 128, True),
        ("*bf16", 1, 4, 32, 8, 128, True),
    )
    on_hopper = (
        ("*bf16", 8, 256, 32, 32, 96, True),
        ("*bf16", 1, 512, 32, 8, 64, True),
        ("*fp16", 1, 512, 32, 8, 128, False),
        ("*fp32", 1, 65, 4, 4, 128, True),
        ("*bf16", 1, 1, 1, 1, 64, False),
    )
    out = [_compilation(*shape, architecture) for shape in everywhere for architecture in ARCHITECTURES]
    return [*out, *(_compilation(*shape, 90) for shape in on_hopper)]


def _compilation(dtype: str, B: int, T: int, H: int, G: int, K: int, has_lengths: bool, architecture: int) -> Compilation:
    config = launch_config(B, T, H, G, K, 4 if dtype == "*fp32" else 2, architecture)
    packed = (H + 2 * G) * K
    keys = packed if config["ROTATES_KEYS"] else G * K
    pointers = {**dict.fromkeys(("q_ptr", "k_ptr", "v_ptr", "out_ptr"), dtype), **dict.fromkeys(("cos_ptr", "sin_ptr"), "*fp32")}
    strides = {}
    for name, width in (("q", packed), ("k", keys), ("v", packed)):
        strides.update({f"stride_{name}_batch": T * width, f"stride_{name}_position": width, f"stride_{name}_head": K})
    tables = {"lengths_ptr": "*i64" if has_lengths else None, "stride_cos_position": K // 2, "stride_sin_position": K // 2}
    sizes = {"T": T, "G": G, "heads_per_group": H // G, "scale_log2": 0.18, "K": K}
    # A tile of 16 queries is too small for the warp-group instructions of sm_90 and later.
    is_matrix = dtype != "*fp32" and (config["BLOCK_M"] >= 64 or architecture < 90)
    return Compilation(_packed_attention_kernel, {**pointers, **strides, **tables, **sizes, **config}, is_matrix, (architecture,))
