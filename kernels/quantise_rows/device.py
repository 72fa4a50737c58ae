"""Rounding to 8 bits inside a kernel, to nearest even exactly as torch's casts."""

from __future__ import annotations

import triton
import triton.language as tl

from ..device_math import IS_INTERPRETED
from .reference import LEAST_AMAX, LIMITS

INT8_LIMIT, FP8_LIMIT = (tl.constexpr(limit) for limit in LIMITS.values())
SMALLEST = tl.constexpr(LEAST_AMAX)
# Added to a smaller number and taken off again, they leave it rounded: one step of fp32 there is 1, and 2^-9 (e4m3's least).
ROUNDS_TO_ONE = tl.constexpr(1.5 * 2.0**23)
ROUNDS_TO_LEAST_FP8 = tl.constexpr(1.5 * 2.0**14)


@triton.jit
def quantised(values, out_type: tl.constexpr):
    """Return (q, scale) of one row of fp32 `values`, zero where masked; contract of `quantise_rows`.

    Launch with enable_fp_fusion=False: a fused multiply-add would skip the rounding between the product and the sum.
    """
    limit: tl.constexpr = INT8_LIMIT if out_type == tl.int8 else FP8_LIMIT
    largest = tl.maximum(tl.max(tl.abs(values), axis=0), SMALLEST)
    # Not `/`: on a GPU that is an approximation.
    scaled = values * (tl.div_rn(1.0, largest) * limit)
    if out_type == tl.int8:
        q = ((scaled + ROUNDS_TO_ONE) - ROUNDS_TO_ONE).to(tl.int8)
    elif IS_INTERPRETED:
        q = _e4m3(scaled)
    else:
        q = scaled.to(tl.float8e4nv)
    return q, largest * (1.0 / limit)


@triton.jit
def _e4m3(values):
    """Round fp32 values of at most 448 to e4m3 by their bits; the interpreter's own cast rounds otherwise."""
    bits = values.to(tl.int32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    # Mantissa from 23 to 3 bits, exponent bias from 127 to 7.
    normal = ((magnitude + 0x7FFFF + ((magnitude >> 20) & 1)) >> 20) - (120 << 3)
    shifted = (tl.abs(values) + ROUNDS_TO_LEAST_FP8).to(tl.int32, bitcast=True)
    subnormal = shifted & 0x3FFFFF
    code = tl.where(tl.abs(values) < 2.0**-6, subnormal, normal) | ((bits >> 24) & 0x80)
    return code.to(tl.uint8).to(tl.float8e4nv, bitcast=True)
