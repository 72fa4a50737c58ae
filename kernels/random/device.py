"""Philox4x32-10 for Triton kernels: its words in registers, bit for bit the reference, and normal numbers from them."""

from __future__ import annotations

import triton
import triton.language as tl

from .reference import KEY_STEPS, MULTIPLIERS, ROUNDS

_ROUNDS = tl.constexpr(ROUNDS)
_M0, _M1 = tl.constexpr(MULTIPLIERS[0]), tl.constexpr(MULTIPLIERS[1])
_W0, _W1 = tl.constexpr(KEY_STEPS[0]), tl.constexpr(KEY_STEPS[1])


@triton.jit
def words_at(seed, position, step, purpose, group):
    """Return the four output words of philox4x32((position, step, purpose, group), seed); blocks broadcast together."""
    c0 = tl.cast(position, tl.uint32)
    c1 = tl.cast(step, tl.uint32)
    c2 = tl.cast(purpose, tl.uint32)
    c3 = tl.cast(group, tl.uint32)
    k0 = seed.to(tl.uint32)
    k1 = (seed >> 32).to(tl.uint32)
    for _ in tl.static_range(_ROUNDS):
        first_high, second_high = tl.umulhi(c0, _M0), tl.umulhi(c2, _M1)
        first_low, second_low = c0 * _M0, c2 * _M1
        c0, c1, c2, c3 = second_high ^ c1 ^ k0, second_low, first_high ^ c3 ^ k1, first_low
        k0, k1 = k0 + _W0, k1 + _W1
    return c0, c1, c2, c3


@triton.jit
def unit_of(word):
    """Return the number of a word strictly inside (0, 1)."""
    return ((word >> 9).to(tl.int32).to(tl.float32) + 0.5) * 1.1920928955078125e-07


@triton.jit
def normal_pair(u, turn):
    """Return sqrt(-2 ln u) (cos, sin)(2 pi turn); the nearest quarter turn is taken off exactly, and the rest is a short series."""
    quarter = (turn * 4.0 + 0.5).to(tl.int32)
    x = turn - quarter.to(tl.float32) * 0.25
    y = x * x
    sine = x * (6.283185307179586 + y * (-41.34170224039976 + y * (81.60524927607504 + y * (-76.70585975306136 + y * 42.05869394489765))))
    cosine = 1.0 + y * (
        -19.739208802178716 + y * (64.93939402266829 + y * (-85.45681720669373 + y * (60.24464137187666 + y * -26.42625678337438)))
    )
    is_odd = (quarter & 1) != 0
    along, across = tl.where(is_odd, sine, cosine), tl.where(is_odd, cosine, sine)
    along = tl.where(((quarter + 1) & 2) != 0, -along, along)
    across = tl.where((quarter & 2) != 0, -across, across)
    radius = tl.sqrt(tl.log(u) * -2.0)
    return radius * along, radius * across


@triton.jit
def normals_at(seed, position, step, purpose, first, BLOCK: tl.constexpr):
    """Return the normal numbers [first, first + BLOCK) of (seed, position, step, purpose); `first` is a multiple of 4."""
    w0, w1, w2, w3 = words_at(seed, position, step, purpose, first // 4 + tl.arange(0, BLOCK // 4))
    z0, z1 = normal_pair(unit_of(w0), unit_of(w1))
    z2, z3 = normal_pair(unit_of(w2), unit_of(w3))
    return tl.reshape(tl.join(tl.join(z0, z2), tl.join(z1, z3)), (BLOCK,))


@triton.jit
def uniform_at(seed, position, step, purpose):
    """Return the fp32 number of (seed, position, step, purpose); `position` is a block or a number, the others are numbers."""
    word, _, _, _ = words_at(seed, position, step, purpose, tl.full((), 0, tl.uint32))
    # The shifted word fits an int32, whose conversion is one instruction; every step from here is exact.
    return unit_of(word)
