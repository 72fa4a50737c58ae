"""Philox4x32-10 for Triton kernels: the first output word in registers, bit for bit the reference."""

from __future__ import annotations

import triton
import triton.language as tl

from .reference import KEY_STEPS, MULTIPLIERS, ROUNDS

_ROUNDS = tl.constexpr(ROUNDS)
_M0, _M1 = tl.constexpr(MULTIPLIERS[0]), tl.constexpr(MULTIPLIERS[1])
_W0, _W1 = tl.constexpr(KEY_STEPS[0]), tl.constexpr(KEY_STEPS[1])


@triton.jit
def uniform_at(seed, position, step, purpose):
    """Return the fp32 number of (seed, position, step, purpose); `position` is a block or a number, the others are numbers."""
    c0 = tl.cast(position, tl.uint32)
    c1 = tl.cast(step, tl.uint32)
    c2 = tl.cast(purpose, tl.uint32)
    c3 = tl.full((), 0, tl.uint32)
    k0 = seed.to(tl.uint32)
    k1 = (seed >> 32).to(tl.uint32)
    for _ in tl.static_range(_ROUNDS):
        first_high, second_high = tl.umulhi(c0, _M0), tl.umulhi(c2, _M1)
        first_low, second_low = c0 * _M0, c2 * _M1
        c0, c1, c2, c3 = second_high ^ c1 ^ k0, second_low, first_high ^ c3 ^ k1, first_low
        k0, k1 = k0 + _W0, k1 + _W1
    # The shifted word fits an int32, whose conversion is one instruction; every step from here is exact.
    return ((c0 >> 9).to(tl.int32).to(tl.float32) + 0.5) * 1.1920928955078125e-07
