"""Choices that no short list of candidates holds: top-p over the vocabulary, a large top-k, and the draw with nothing filtered.

Sorting is avoided: in descending order the token at which a count or a mass crosses a threshold is found by bisecting the scores, one
pass per bit. Equal scores weigh the same, so the crossing among them is a quotient.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..device_math import loop_bound
from .device import LOWEST, biased_scores, inverse_scale, ordered, score_of, weight_of


@triton.jit
def _mass_from(low, logits_ptr, bias_ids_ptr, bias_ptr, stride_bias, M, V, top, inverse, IS_COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """Return in fp64 the weight, or the number, of the tokens whose ordered score is at least `low`."""
    mass = tl.full((), 0.0, tl.float64)
    for first in tl.range(0, loop_bound(V), BLOCK):
        scores = biased_scores(logits_ptr, bias_ids_ptr, bias_ptr, stride_bias, M, first, V, BLOCK)
        is_in = ordered(scores) >= low.to(tl.int32)
        if IS_COUNT:
            mass += tl.sum(is_in.to(tl.int32), 0).to(tl.float64)
        else:
            mass += tl.sum(tl.where(is_in, weight_of(scores, top, inverse), 0.0).to(tl.float64), 0)
    return mass


@triton.jit
def _crossing(
    threshold, logits_ptr, bias_ids_ptr, bias_ptr, stride_bias, M, V, top, inverse, IS_COUNT: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Return the largest ordered score from which on the mass exceeds `threshold`, and the mass above that score."""
    low = tl.full((), LOWEST, tl.int64)
    high = ordered(top).to(tl.int64) + 1
    above = tl.full((), 0.0, tl.float64)
    while high - low > 1:
        middle = (low + high) >> 1
        mass = _mass_from(middle, logits_ptr, bias_ids_ptr, bias_ptr, stride_bias, M, V, top, inverse, IS_COUNT, BLOCK)
        exceeds = mass > threshold
        low = tl.where(exceeds, middle, low)
        high = tl.where(exceeds, high, middle)
        above = tl.where(exceeds, above, mass)
    return low, above


@triton.jit
def _ties_until(room, each):
    """Return the smallest whole n with n * each > room; both are fp64, and `each` fits fp32."""
    n = tl.floor(room.to(tl.float32) / each.to(tl.float32)).to(tl.float64)
    # The quotient is rounded, and a 64-bit one would be a function call with a stack.
    n = tl.where((n + 1.0) * each <= room, n + 1.0, n)
    return tl.where(n * each > room, n, n + 1.0)


@triton.jit
def filtered_kernel(
    logits_ptr, uniforms_ptr, temperature_ptr, top_k_ptr, top_p_ptr, drop_crossing_ptr, full_confidence_ptr, bias_ids_ptr, bias_ptr,
    tops_ptr, totals_ptr, token_ptr, confidence_ptr,
    stride_logits_row, stride_uniforms, stride_temperature, stride_top_k, stride_top_p, stride_drop, stride_full, stride_bias_row,
    stride_bias,
    V, M,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    top_k = tl.load(top_k_ptr + row * stride_top_k)
    top_p = tl.load(top_p_ptr + row * stride_top_p)
    # A row without a filter keeps what the scan said, or is drawn by the other kernel.
    if (top_k > 0) | (top_p < 1.0):
        logits_ptr += row * stride_logits_row
        bias_ptr += row * stride_bias_row
        temperature = tl.load(temperature_ptr + row * stride_temperature)
        inverse = inverse_scale(temperature)
        top = tl.load(tops_ptr + row)
        kept = tl.full((), 0.0, tl.float64)
        if (top_k > 0) & (top_k < V):
            rank = top_k.to(tl.float64)
            value, above = _crossing(rank - 1.0, logits_ptr, bias_ids_ptr, bias_ptr, stride_bias, M, V, top, inverse, True, BLOCK)
            tied = (rank - above) * weight_of(score_of(value), top, inverse).to(tl.float64)
            kept = _mass_from(value + 1, logits_ptr, bias_ids_ptr, bias_ptr, stride_bias, M, V, top, inverse, False, BLOCK) + tied
        else:
            low = tl.full((), LOWEST, tl.int64)
            kept = _mass_from(low, logits_ptr, bias_ids_ptr, bias_ptr, stride_bias, M, V, top, inverse, False, BLOCK)
        if top_p < 1.0:
            threshold = top_p.to(tl.float64) * kept
            value, above = _crossing(threshold, logits_ptr, bias_ids_ptr, bias_ptr, stride_bias, M, V, top, inverse, False, BLOCK)
            each = weight_of(score_of(value), top, inverse).to(tl.float64)
            ties = _ties_until(threshold - above, each)
            # Without the crossing token rank 0 still stays, and it weighs 1.
            drop = tl.load(drop_crossing_ptr + row * stride_drop).to(tl.int32).to(tl.float64)
            kept = tl.maximum(above + (ties - drop) * each, 1.0)
        value = ordered(top).to(tl.int64)
        ties = tl.full((), 1.0, tl.float64)
        if temperature > 0.0:
            threshold = tl.load(uniforms_ptr + row * stride_uniforms).to(tl.float64) * kept
            value, above = _crossing(threshold, logits_ptr, bias_ids_ptr, bias_ptr, stride_bias, M, V, top, inverse, False, BLOCK)
            ties = _ties_until(threshold - above, weight_of(score_of(value), top, inverse).to(tl.float64))

        wanted = ties.to(tl.int32)
        seen = tl.full((), 0, tl.int32)
        token = tl.full((), 0, tl.int32)
        for first in tl.range(0, loop_bound(V), BLOCK):
            scores = biased_scores(logits_ptr, bias_ids_ptr, bias_ptr, stride_bias, M, first, V, BLOCK)
            matches = (ordered(scores) == value.to(tl.int32)).to(tl.int32)
            place = seen + tl.cumsum(matches, 0)
            token = tl.maximum(token, tl.max(tl.where((matches > 0) & (place <= wanted), first + tl.arange(0, BLOCK), 0), 0))
            # The sum of `matches` would be counted in bits, for which the compiler of Triton 3.9 sets up a stack.
            seen = tl.max(place, 0)
        is_full = tl.load(full_confidence_ptr + row * stride_full).to(tl.int32)
        total = tl.where(is_full != 0, tl.load(totals_ptr + row), kept)
        confidence = weight_of(score_of(value), top, inverse).to(tl.float64) / total
        tl.store(token_ptr + row, token.to(tl.int64))
        tl.store(confidence_ptr + row, confidence.to(tl.float32))


@triton.jit
def unfiltered_kernel(
    logits_ptr, uniforms_ptr, temperature_ptr, top_k_ptr, top_p_ptr, bias_ids_ptr, bias_ptr, tops_ptr, token_ptr, confidence_ptr,
    stride_logits_row, stride_uniforms, stride_temperature, stride_top_k, stride_top_p, stride_bias_row, stride_bias,
    V, M,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    temperature = tl.load(temperature_ptr + row * stride_temperature)
    top_p = tl.load(top_p_ptr + row * stride_top_p)
    if (tl.load(top_k_ptr + row * stride_top_k) == 0) & (top_p >= 1.0) & (temperature > 0.0):
        logits_ptr += row * stride_logits_row
        bias_ptr += row * stride_bias_row
        inverse = inverse_scale(temperature)
        top = tl.load(tops_ptr + row)
        low = tl.full((), LOWEST, tl.int64)
        total = _mass_from(low, logits_ptr, bias_ids_ptr, bias_ptr, stride_bias, M, V, top, inverse, False, BLOCK)
        threshold = tl.load(uniforms_ptr + row * stride_uniforms).to(tl.float64) * total
        before = tl.full((), 0.0, tl.float64)
        drawn = tl.full((), 0, tl.int32) + V
        last = tl.full((), 0, tl.int32)
        for first in tl.range(0, loop_bound(V), BLOCK):
            offs_v = first + tl.arange(0, BLOCK)
            scores = biased_scores(logits_ptr, bias_ids_ptr, bias_ptr, stride_bias, M, first, V, BLOCK)
            weight = weight_of(scores, top, inverse).to(tl.float64)
            is_crossed = (before + tl.cumsum(weight, 0) > threshold) & (weight > 0.0)
            drawn = tl.minimum(drawn, tl.min(tl.where(is_crossed, offs_v, V), 0))
            last = tl.maximum(last, tl.max(tl.where(weight > 0.0, offs_v, 0), 0))
            before += tl.sum(weight, 0)
        # A sum in another order may end a rounding short of the threshold; a forbidden token is never the answer.
        token = tl.minimum(drawn, last)
        first = token // BLOCK * BLOCK
        scores = biased_scores(logits_ptr, bias_ids_ptr, bias_ptr, stride_bias, M, first, V, BLOCK)
        score = tl.max(tl.where(first + tl.arange(0, BLOCK) == token, scores, float("-inf")), 0)
        tl.store(token_ptr + row, token.to(tl.int64))
        tl.store(confidence_ptr + row, (weight_of(score, top, inverse).to(tl.float64) / total).to(tl.float32))
