"""Token choice: one pass over the logits keeps the few best keys and the running sum of exponentials of each split of a row.

A key is a score and an id in one integer, so that exact top-k with ties to the lower id is a maximum of integers. A tile is searched
only while its best key still beats the worst one kept. A second, small kernel merges the splits, filters and draws.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ahead_of_time import Compilation
from ..device_math import loop_bound
from .device import LAST_ID, LOWEST_KEY, NO_KEY, biased_scores, inverse_scale, key_of, score_of, weight_of
from .device_passes import filtered_kernel, unfiltered_kernel
from .reference import check

MAX_BLOCK = 4096
MAX_SPLITS = 16
TILES_PER_SPLIT = 4
# A candidate costs a maximum over the tile; beyond this many, passes over the row are fewer than maxima.
MAX_CANDIDATES = 128
LARGEST_VOCABULARY = 2**31 - MAX_BLOCK


def launch_config(V: int) -> dict[str, int]:
    """Tiles and splits of a row of V logits; nothing else decides, so that a row has the same bits whatever it is batched with.

    Left to itself the assembler would settle for 80 registers on sm_80 and spill (Triton 3.9); the limit lets it take 95.
    """
    block = max(128, min(MAX_BLOCK, triton.next_power_of_2(V)))
    tiles = triton.cdiv(V, block)
    tiles_per_split = max(TILES_PER_SPLIT, triton.cdiv(tiles, MAX_SPLITS))
    splits = triton.cdiv(tiles, tiles_per_split)
    tile = {"BLOCK": block, "num_warps": max(1, block // 512), "maxnreg": 128}
    return {**tile, "splits": splits, "split_length": tiles_per_split * block}


@triton.jit
def _scan_kernel(
    logits_ptr, temperature_ptr, bias_ids_ptr, bias_ptr, keys_ptr, masses_ptr,
    stride_logits_row, stride_temperature, stride_bias_row, stride_bias,
    V, M, split_length,
    K: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    logits_ptr += row * stride_logits_row
    bias_ptr += row * stride_bias_row
    begin = split * split_length
    end = tl.minimum(begin + split_length, V)
    inverse = inverse_scale(tl.load(temperature_ptr + row * stride_temperature))
    top = tl.full((), float("-inf"), tl.float32)
    mass = tl.full((), 0.0, tl.float64)
    offs_k = tl.arange(0, K)
    # Unlike each other, so that a new key replaces one of them; below every key of a token.
    kept = offs_k.to(tl.int64) + NO_KEY
    best_token = tl.full((), 0, tl.int32) + begin
    for first in tl.range(loop_bound(begin), loop_bound(end), BLOCK):
        offs_v = first + tl.arange(0, BLOCK)
        scores = biased_scores(logits_ptr, bias_ids_ptr, bias_ptr, stride_bias, M, first, end, BLOCK)
        tile_top = tl.max(scores, 0)
        new_top = tl.maximum(top, tile_top)
        # A split in which every token is forbidden has no mass, and no NaN either.
        base = tl.where(new_top == float("-inf"), 0.0, new_top)
        mass = mass * weight_of(top, base, inverse).to(tl.float64) + tl.sum(weight_of(scores, base, inverse), 0).to(tl.float64)
        if K == 1:
            if tile_top > top:
                best_token = tl.min(tl.where(scores == tile_top, offs_v, LAST_ID), 0)
        else:
            worst = tl.min(kept, 0)
            if key_of(tile_top, first) > worst:
                keys = tl.where(offs_v < end, key_of(scores, offs_v), NO_KEY)
                best = tl.max(keys, 0)
                while best > worst:
                    kept = tl.where(kept == worst, best, kept)
                    keys = tl.where(keys == best, NO_KEY, keys)
                    worst = tl.min(kept, 0)
                    best = tl.max(keys, 0)
        top = new_top
    place = row * tl.num_programs(1) + split
    if K == 1:
        tl.store(keys_ptr + place, key_of(top, best_token))
    else:
        tl.store(keys_ptr + place * K + offs_k, kept)
    tl.store(masses_ptr + place, mass)


@triton.jit
def _choose_kernel(
    keys_ptr, masses_ptr, uniforms_ptr, temperature_ptr, top_k_ptr, top_p_ptr, drop_crossing_ptr, full_confidence_ptr,
    tops_ptr, totals_ptr, token_ptr, confidence_ptr,
    stride_uniforms, stride_temperature, stride_top_k, stride_top_p, stride_drop, stride_full,
    splits,
    K: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    offs_s = tl.arange(0, BLOCK_S)
    offs_k = tl.arange(0, K)
    mask_s = offs_s < splits
    keys = tl.load(keys_ptr + (row * splits + offs_s[:, None]) * K + offs_k[None, :], mask=mask_s[:, None], other=NO_KEY)
    masses = tl.load(masses_ptr + row * splits + offs_s, mask=mask_s, other=0.0)
    temperature = tl.load(temperature_ptr + row * stride_temperature)
    top_k = tl.load(top_k_ptr + row * stride_top_k)
    top_p = tl.load(top_p_ptr + row * stride_top_p)
    inverse = inverse_scale(temperature)
    split_keys = tl.max(keys, 1)
    split_tops = tl.where(mask_s, score_of(split_keys >> 32), float("-inf"))
    top = tl.max(split_tops, 0)
    total = tl.sum(masses * weight_of(split_tops, top, inverse).to(tl.float64), 0)
    key = tl.max(split_keys, 0)
    weight = tl.full((), 1.0, tl.float64)
    kept_total = tl.full((), 1.0, tl.float64)
    if K > 1:
        rest = tl.reshape(keys, (BLOCK_S * K,))
        ranked = tl.full((K,), NO_KEY, tl.int64)
        for rank in range(K):
            best = tl.max(rest, 0)
            ranked = tl.where(offs_k == rank, best, ranked)
            rest = tl.where(rest == best, NO_KEY, rest)
        count = tl.where(top_k == 0, K, top_k)
        is_candidate = (ranked >= LOWEST_KEY) & (offs_k < count)
        weights = tl.where(is_candidate, weight_of(score_of(ranked >> 32), top, inverse), 0.0).to(tl.float64)
        cumulative = tl.cumsum(weights, 0)
        drop = tl.load(drop_crossing_ptr + row * stride_drop).to(tl.int32).to(tl.float64)
        limit = tl.where(top_p >= 1.0, float("inf"), top_p.to(tl.float64) * tl.sum(weights, 0))
        stays = (cumulative - (1.0 - drop) * weights <= limit) | (offs_k == 0)
        weights = tl.where(stays, weights, 0.0)
        kept_total = tl.sum(weights, 0)
        threshold = tl.where(temperature == 0.0, 0.0, tl.load(uniforms_ptr + row * stride_uniforms).to(tl.float64) * kept_total)
        is_crossed = (tl.cumsum(weights, 0) > threshold) & (weights > 0.0)
        last = tl.max(tl.where(weights > 0.0, offs_k, 0), 0)
        rank = tl.minimum(tl.min(tl.where(is_crossed, offs_k, K), 0), last)
        key = tl.max(tl.where(offs_k == rank, ranked, NO_KEY), 0)
        weight = tl.sum(tl.where(offs_k == rank, weights, 0.0), 0)
    is_full = tl.load(full_confidence_ptr + row * stride_full).to(tl.int32)
    is_full = tl.where((top_k == 0) & (top_p >= 1.0), 1, is_full)
    tl.store(token_ptr + row, -(key & LAST_ID) + LAST_ID)
    tl.store(confidence_ptr + row, (weight / tl.where(is_full != 0, total, kept_total)).to(tl.float32))
    tl.store(tops_ptr + row, top)
    tl.store(totals_ptr + row, total)


def choose_token(
    logits: Tensor,
    uniforms: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    drop_crossing: Tensor,
    full_confidence: Tensor,
    bias_ids: Tensor,
    bias_values: Tensor,
    *,
    max_top_k: int,
    samples_all: bool,
) -> tuple[Tensor, Tensor]:
    """Contract of the reference; also a ValueError where V exceeds LARGEST_VOCABULARY."""
    check(logits, bias_ids, bias_values)
    N, V = logits.shape
    if V > LARGEST_VOCABULARY:
        raise ValueError(f"choose_token: logits is {(N, V)}, expected at most {LARGEST_VOCABULARY} columns.")
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    bias_ids = bias_ids.contiguous()
    device = logits.device
    token = torch.empty(N, dtype=torch.int64, device=device)
    confidence = torch.empty(N, dtype=torch.float32, device=device)
    if not N:
        return token, confidence
    config = launch_config(V)
    splits, split_length = config.pop("splits"), config.pop("split_length")
    has_candidates = 0 < max_top_k <= MAX_CANDIDATES
    K = triton.next_power_of_2(min(max_top_k, V)) if has_candidates else 1
    keys = torch.empty(N, splits, K, dtype=torch.int64, device=device)
    masses = torch.empty(N, splits, dtype=torch.float64, device=device)
    tops = torch.empty(N, dtype=torch.float32, device=device)
    totals = torch.empty(N, dtype=torch.float64, device=device)
    rule = (uniforms, temperature, top_k, top_p, drop_crossing, full_confidence)
    strides = tuple(one.stride(0) for one in rule)
    bias_strides = bias_values.stride()
    with torch.cuda.device_of(logits):
        _scan_kernel[(N, splits)](
            logits, temperature, bias_ids, bias_values, keys, masses,
            logits.stride(0), strides[1], *bias_strides, V, bias_ids.shape[0], split_length, K=K, **config,
        )  # fmt: skip
        _choose_kernel[(N,)](
            keys, masses, *rule, tops, totals, token, confidence, *strides, splits, **choose_config(splits, K)
        )  # fmt: skip
        if not has_candidates:
            filtered_kernel[(N,)](
                logits, *rule, bias_ids, bias_values, tops, totals, token, confidence,
                logits.stride(0), *strides, *bias_strides, V, bias_ids.shape[0], **passes_config(V),
            )  # fmt: skip
        if samples_all:
            unfiltered_kernel[(N,)](
                logits, *rule[:4], bias_ids, bias_values, tops, token, confidence,
                logits.stride(0), *strides[:4], *bias_strides, V, bias_ids.shape[0], **passes_config(V),
            )  # fmt: skip
    return token, confidence


def choose_config(splits: int, K: int) -> dict[str, int]:
    """Tile of the merge: every key of a row at once, 8 to 16 per thread."""
    block = triton.next_power_of_2(splits)
    return {"K": K, "BLOCK_S": block, "num_warps": max(1, min(8, block * K // 256))}


def passes_config(V: int) -> dict[str, int | bool]:
    """Tile of the passes, one program per row: 8 values per thread; sums round as they are written.

    The assembler would settle for 48 registers and spill; the limit, which a block of 512 threads just has, lets it take 70.
    """
    block = max(128, min(MAX_BLOCK, triton.next_power_of_2(V)))
    return {"BLOCK": block, "num_warps": max(1, block // 256), "maxnreg": 128, "enable_fp_fusion": False}


def ahead_of_time() -> list[Compilation]:
    """Every kernel over the vocabularies of SmolLM2 and Llama 3, and one that nothing divides; few and many candidates."""
    pointers = {"logits_ptr": "*bf16", "bias_ids_ptr": "*i64", "bias_ptr": "*fp32", "keys_ptr": "*i64", "masses_ptr": "*fp64"}
    pointers |= dict.fromkeys(("uniforms_ptr", "temperature_ptr", "top_p_ptr", "tops_ptr", "confidence_ptr"), "*fp32")
    pointers |= {"top_k_ptr": "*i64", "drop_crossing_ptr": "*i1", "full_confidence_ptr": "*i1", "totals_ptr": "*fp64", "token_ptr": "*i64"}
    # A rule of one request is one number expanded over its rows.
    names = ("uniforms", "temperature", "top_k", "top_p", "drop", "full", "bias_row")
    strides = {"stride_uniforms": 1, **{f"stride_{name}": 0 for name in names[1:]}, "stride_bias": 1}
    out = []
    for dtype, V, M, counts in (("*bf16", 128256, 3, (1, 4, MAX_CANDIDATES)), ("*fp32", 49152, 1, (1,)), ("*fp16", 123, 2, (8,))):
        config = launch_config(V)
        splits, split_length = config.pop("splits"), config.pop("split_length")
        common = {**pointers, "logits_ptr": dtype, **strides, "stride_logits_row": V, "V": V, "M": M}
        for K in counts:
            out.append(_listed(_scan_kernel, {**common, "split_length": split_length, "K": K, **config}))
            out.append(_listed(_choose_kernel, {**common, "splits": splits, **choose_config(splits, K)}))
        if dtype != "*fp16":
            out += [_listed(kernel, {**common, **passes_config(V)}) for kernel in (filtered_kernel, unfiltered_kernel)]
    return out


def _listed(kernel: object, arguments: dict[str, object]) -> Compilation:
    """Drop what the kernel does not take, and keep the options of the launch."""
    options = ("num_warps", "maxnreg", "enable_fp_fusion")
    return Compilation(kernel, {name: value for name, value in arguments.items() if name in kernel.arg_names or name in options})
