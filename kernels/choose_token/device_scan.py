"""One pass over a row's logits, and the draw from what it kept: the few best keys and a sum of exponentials of each split.

A key is a score and an id in one integer, so that exact top-k with ties to the lower id is a maximum of integers.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..device_math import loop_bound
from .device import LAST_ID, LOWEST_KEY, NO_KEY, biased_scores, inverse_scale, key_of, score_of, weight_of


@triton.jit
def mass_after(mass, top, new_top, tile_mass, inverse):
    """Return in fp64 the mass of both, relative to `new_top`; a stretch in which every token is forbidden has none, and no NaN either."""
    base = tl.where(new_top == float("-inf"), 0.0, new_top)
    return mass * weight_of(top, base, inverse).to(tl.float64) + tile_mass


@triton.jit
def keep_largest(kept, keys):
    """Return the largest of `kept` `[K]`, which differ from each other, and `keys`, as many as there were."""
    worst = tl.min(kept, 0)
    best = tl.max(keys, 0)
    while best > worst:
        kept = tl.where(kept == worst, best, kept)
        keys = tl.where(keys == best, NO_KEY, keys)
        worst = tl.min(kept, 0)
        best = tl.max(keys, 0)
    return kept


@triton.jit
def scan_kernel(
    logits_ptr, temperature_ptr, bias_ids_ptr, bias_ptr, keys_ptr, masses_ptr,
    stride_logits_row, stride_temperature, stride_bias_row, stride_bias,
    start, stop, M, split_length,
    CONTINUES: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Scan the ids [start, stop), whose logits begin at `logits_ptr`; CONTINUES takes up what the ids before them left."""
    row = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    logits_ptr += row * stride_logits_row - start
    bias_ptr += row * stride_bias_row
    begin = start + split * split_length
    end = tl.minimum(begin + split_length, stop)
    inverse = inverse_scale(tl.load(temperature_ptr + row * stride_temperature))
    place = row * tl.num_programs(1) + split
    offs_k = tl.arange(0, K)
    if CONTINUES:
        kept = tl.load(keys_ptr + place * K + offs_k)
        key = tl.max(kept, 0)
        top = score_of(key >> 32)
        best_token = (-(key & LAST_ID) + LAST_ID).to(tl.int32)
        mass = tl.load(masses_ptr + place)
    else:
        # Unlike each other, so that a new key replaces one of them; below every key of a token.
        kept = offs_k.to(tl.int64) + NO_KEY
        top = tl.full((), float("-inf"), tl.float32)
        best_token = tl.full((), 0, tl.int32) + begin
        mass = tl.full((), 0.0, tl.float64)
    for first in tl.range(loop_bound(begin), loop_bound(end), BLOCK):
        offs_v = first + tl.arange(0, BLOCK)
        scores = biased_scores(logits_ptr, bias_ids_ptr, bias_ptr, stride_bias, M, first, end, BLOCK)
        tile_top = tl.max(scores, 0)
        new_top = tl.maximum(top, tile_top)
        base = tl.where(new_top == float("-inf"), 0.0, new_top)
        mass = mass_after(mass, top, new_top, tl.sum(weight_of(scores, base, inverse), 0).to(tl.float64), inverse)
        if K == 1:
            if tile_top > top:
                best_token = tl.min(tl.where(scores == tile_top, offs_v, LAST_ID), 0)
        else:
            # A tile is searched only while its best key still beats the worst one kept.
            if key_of(tile_top, first) > tl.min(kept, 0):
                kept = keep_largest(kept, tl.where(offs_v < end, key_of(scores, offs_v), NO_KEY))
        top = new_top
    if K == 1:
        tl.store(keys_ptr + place, key_of(top, best_token))
    else:
        tl.store(keys_ptr + place * K + offs_k, kept)
    tl.store(masses_ptr + place, mass)


@triton.jit
def draw_from_keys(
    keys, top, total, row, uniforms_ptr, temperature_ptr, top_k_ptr, top_p_ptr, drop_crossing_ptr, full_confidence_ptr,
    token_ptr, confidence_ptr,
    stride_uniforms, stride_temperature, stride_top_k, stride_top_p, stride_drop, stride_full,
    K: tl.constexpr,
):  # fmt: skip
    """Filter the K largest of `keys`, draw one of them and store it; `total` is the mass of the whole row relative to `top`."""
    offs_k = tl.arange(0, K)
    temperature = tl.load(temperature_ptr + row * stride_temperature)
    top_k = tl.load(top_k_ptr + row * stride_top_k)
    top_p = tl.load(top_p_ptr + row * stride_top_p)
    inverse = inverse_scale(temperature)
    key = tl.max(keys, 0)
    weight = tl.full((), 1.0, tl.float64)
    kept_total = tl.full((), 1.0, tl.float64)
    if K > 1:
        ranked = tl.full((K,), NO_KEY, tl.int64)
        for rank in range(K):
            best = tl.max(keys, 0)
            ranked = tl.where(offs_k == rank, best, ranked)
            keys = tl.where(keys == best, NO_KEY, keys)
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


@triton.jit
def choose_kernel(
    keys_ptr, masses_ptr, uniforms_ptr, temperature_ptr, top_k_ptr, top_p_ptr, drop_crossing_ptr, full_confidence_ptr,
    tops_ptr, totals_ptr, token_ptr, confidence_ptr,
    stride_uniforms, stride_temperature, stride_top_k, stride_top_p, stride_drop, stride_full,
    splits,
    K: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Merge the splits of a row and draw; the largest score and the mass go to `tops_ptr`, `totals_ptr` where these are given."""
    row = tl.program_id(0).to(tl.int64)
    offs_s = tl.arange(0, BLOCK_S)
    offs_k = tl.arange(0, K)
    mask_s = offs_s < splits
    keys = tl.load(keys_ptr + (row * splits + offs_s[:, None]) * K + offs_k[None, :], mask=mask_s[:, None], other=NO_KEY)
    masses = tl.load(masses_ptr + row * splits + offs_s, mask=mask_s, other=0.0)
    inverse = inverse_scale(tl.load(temperature_ptr + row * stride_temperature))
    split_tops = tl.where(mask_s, score_of(tl.max(keys, 1) >> 32), float("-inf"))
    top = tl.max(split_tops, 0)
    total = tl.sum(masses * weight_of(split_tops, top, inverse).to(tl.float64), 0)
    draw_from_keys(
        tl.reshape(keys, (BLOCK_S * K,)), top, total, row, uniforms_ptr, temperature_ptr, top_k_ptr, top_p_ptr, drop_crossing_ptr,
        full_confidence_ptr, token_ptr, confidence_ptr,
        stride_uniforms, stride_temperature, stride_top_k, stride_top_p, stride_drop, stride_full, K,
    )  # fmt: skip
    if tops_ptr is not None:
        tl.store(tops_ptr + row, top)
        tl.store(totals_ptr + row, total)
