"""What the passes over a row of logits share: biased scores, their order as integers, and weights relative to the largest."""

from __future__ import annotations

import triton
import triton.language as tl

from ..device_math import loop_bound

# On the right of an operator only: in the interpreter of Triton 3.9 constant - tensor is a constexpr again, which few functions take.
LOG2_E = tl.constexpr(1.4426950408889634)
LARGEST = tl.constexpr(3.4028234663852886e38)
# What `ordered` makes of -inf, and the key of a token that scores -inf and has the highest id.
LOWEST = tl.constexpr(-2139095041)
LOWEST_KEY = tl.constexpr(-2139095041 << 32)
NO_KEY = tl.constexpr(-(2**63))
LAST_ID = tl.constexpr(2**31 - 1)


@triton.jit
def biased_scores(logits_ptr, bias_ids_ptr, bias_ptr, stride_bias, M, first, end, BLOCK: tl.constexpr):
    """Return l of the ids `[first, first + BLOCK)` in fp32, -inf from `end` on."""
    offs_v = first + tl.arange(0, BLOCK)
    scores = tl.load(logits_ptr + offs_v, mask=offs_v < end, other=float("-inf")).to(tl.float32)
    for m in tl.range(0, loop_bound(M)):
        bias_id = tl.load(bias_ids_ptr + m)
        if (bias_id >= first) & (bias_id < first + BLOCK):
            scores = tl.where(offs_v == bias_id, scores + tl.load(bias_ptr + m * stride_bias), scores)
    # Minus zero equals zero, but its bits would order below.
    return tl.where(scores == 0.0, 0.0, scores)


@triton.jit
def ordered(scores):
    """Return int32 that compare as the scores do; `score_of` undoes it."""
    bits = scores.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def score_of(value):
    bits = value.to(tl.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def key_of(score, token):
    """Return int64 that compare by score, equal scores by the lower id first."""
    return (ordered(score).to(tl.int64) << 32) | tl.cast(-token + LAST_ID, tl.int64)


@triton.jit
def inverse_scale(temperature):
    """Return log2(e) / temperature, and of a greedy row log2(e), kept finite so that the largest score weighs 1."""
    return tl.minimum(tl.full((), LOG2_E, tl.float32) / tl.where(temperature == 0.0, 1.0, temperature), LARGEST)


@triton.jit
def weight_of(scores, top, inverse):
    """Return exp((score - top) / temperature) in fp32."""
    return tl.exp2((scores - top) * inverse)
