"""Philox4x32-10 in plain PyTorch: every random number of the engine is a pure function of (seed, position, step, purpose)."""

from __future__ import annotations

import torch
from torch import Tensor

# What a draw is for: the third counter word, so that two uses at one position and step never share a number.
SAMPLE = 0
RENOISE = 1
RETAIN = 2
TRANSFER = 3
START = 4
FLOW_START = 10
FLOW_TARGET = 11
SIMPLEX_NOISE = 8
REVEAL = 5
ORDER = 6
CORRUPT_LEVEL = 16
CORRUPT_MASK = 17
CORRUPT_SWAP = 18
CORRUPT_DUPLICATE = 19
CORRUPT_SPAN = 20
CORRUPT_SIMPLEX = 21
DATA_ORDER = 32
FLOW_TIME = 34
FLOW_NOISE = 35
FLOW_LABEL = 36
ANNEAL = 33

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
WORD = 0xFFFFFFFF
# How far a normal number may lie from the one rounded from fp64: a few units in the last place of the largest.
NORMAL_TOLERANCE = 2e-6


def philox4x32(counter: tuple[Tensor | int, ...], key: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Apply the ten rounds of Philox4x32 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 4.3).

    One round: (c0, c1, c2, c3) <- (hi(M1 c2) ^ c1 ^ k0, lo(M1 c2), hi(M0 c0) ^ c3 ^ k1, lo(M0 c0)); the key grows by (W0, W1).

    Args:
        counter: four words, int64 tensors or ints that broadcast together with `key`; only the low 32 bits count.
        key: int64, its low word is k0 and its high word k1.
    Returns:
        Four int64 tensors holding unsigned 32-bit words.
    """
    k0, k1 = key & WORD, (key >> 32) & WORD
    # Adding 0 * key gives every word the broadcast shape and the device without reading anything on the host.
    c0, c1, c2, c3 = ((word + 0 * key) & WORD for word in counter)
    for _ in range(ROUNDS):
        # int64 wraps, and the two words of a wrapped product are still those of the unsigned one.
        first, second = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = ((second >> 32) & WORD) ^ c1 ^ k0, second & WORD, ((first >> 32) & WORD) ^ c3 ^ k1, first & WORD
        k0, k1 = (k0 + KEY_STEPS[0]) & WORD, (k1 + KEY_STEPS[1]) & WORD
    return c0, c1, c2, c3


def uniform(seeds: Tensor, positions: Tensor, step: Tensor, purpose: int) -> Tensor:
    """Draw one number per sequence and position, independent of the batch slot and of the batch-mates.

    u = (floor(w / 2^9) + 1/2) * 2^-23, w the first word of philox4x32((position, step, purpose, 0), seed): 2^23 values, each exact
    in fp32 and strictly inside (0, 1). (24 bits plus a half would round up to 1.)

    Args:
        seeds: `[B]` int64. positions: `[R]` int64. step: int64 device counters, `[]` for all or `[B]`, one per sequence.
        purpose: one of the constants above.
    Returns:
        `[B, R]` fp32.
    Raises:
        ValueError: a shape or dtype disagrees.
    """
    check(seeds, positions, step)
    step = step[:, None] if step.dim() else step
    word = philox4x32((positions[None], step, purpose, 0), seeds[:, None])[0]
    return ((word >> 9).float() + 0.5) * 2.0**-23


def normal(seeds: Tensor, positions: Tensor, step: Tensor, purpose: int, count: int) -> Tensor:
    """Draw `count` standard normal numbers per row, number v of a row from (seed, position, step, purpose, v) alone.

    One call of philox4x32((position, step, purpose, g), seed) makes the numbers 4g to 4g + 3 by Box and Muller's method: with the
    uniforms u_i of its words w_i as in `uniform`,  z_0, z_1 = sqrt(-2 ln u_0) (cos, sin)(2 pi u_1),  z_2, z_3 the same of u_2, u_3.

    The words are the same bits everywhere; here the rest is taken in fp64 and rounded once. Backends compute it in fp32 and may differ
    by NORMAL_TOLERANCE. The largest magnitude is sqrt(48 ln 2) = 5.77.
    Args:
        seeds, positions: `[N]` int64. step: int64, `[]` for all or `[N]`. purpose: one of the constants above.
    Returns:
        `[N, count]` fp32.
    """
    groups = torch.arange(-(-count // 4), device=seeds.device)
    step = step[:, None] if step.dim() else step
    words = philox4x32((positions[:, None], step, purpose, groups[None]), seeds[:, None])
    u0, u1, u2, u3 = (((word >> 9).double() + 0.5) * 2.0**-23 for word in words)
    first, second = (torch.sqrt(-2.0 * u.log()) for u in (u0, u2))
    turns = (2.0 * torch.pi * u1, 2.0 * torch.pi * u3)
    four = (first * turns[0].cos(), first * turns[0].sin(), second * turns[1].cos(), second * turns[1].sin())
    return torch.stack(four, 2).flatten(1)[:, :count].float()


def check(seeds: Tensor, positions: Tensor, step: Tensor) -> None:
    """Raise ValueError where a shape or dtype disagrees."""
    for name, value in (("seeds", seeds), ("positions", positions)):
        if value.dim() != 1 or value.dtype != torch.int64:
            raise ValueError(f"uniform: {name} is {value.dim()}-d {value.dtype}, expected 1-d torch.int64.")
    if step.dtype != torch.int64 or (step.dim() and step.shape != seeds.shape):
        raise ValueError(f"uniform: step is {tuple(step.shape)} {step.dtype}, expected () or {tuple(seeds.shape)} torch.int64.")
