"""Philox4x32-10 in NumPy, bit for bit the reference: for host code that draws without tensors (data order, plans)."""

from __future__ import annotations

import numpy as np

from .reference import KEY_STEPS, MULTIPLIERS, ROUNDS, WORD


def philox4x32_numpy(counter: tuple[np.ndarray | int, ...], key: np.ndarray | int) -> tuple[np.ndarray, ...]:
    """Return the four output words (uint64 arrays of 32-bit values) of `philox4x32`; the arguments broadcast together."""
    low32 = np.uint64(WORD)
    key = np.asarray(key, np.int64).astype(np.uint64)
    words = [np.asarray(word, np.int64).astype(np.uint64) & low32 for word in counter]
    c0, c1, c2, c3, k0, k1 = np.broadcast_arrays(*words, key & low32, key >> np.uint64(32))
    for _ in range(ROUNDS):
        first, second = c0 * np.uint64(MULTIPLIERS[0]), c2 * np.uint64(MULTIPLIERS[1])
        c0, c1, c2, c3 = (second >> np.uint64(32)) ^ c1 ^ k0, second & low32, (first >> np.uint64(32)) ^ c3 ^ k1, first & low32
        k0, k1 = (k0 + np.uint64(KEY_STEPS[0])) & low32, (k1 + np.uint64(KEY_STEPS[1])) & low32
    return c0, c1, c2, c3


def uniform_numpy(seeds: np.ndarray, positions: np.ndarray, step: int | np.ndarray, purpose: int) -> np.ndarray:
    """Return `[B, R]` fp32, the numbers `uniform` draws for int64 `seeds` `[B]`, `positions` `[R]`, `step` one or `[B]`."""
    step = np.asarray(step)[..., None]
    word = philox4x32_numpy((np.asarray(positions)[None], step, purpose, 0), np.asarray(seeds)[:, None])[0]
    return ((word >> np.uint64(9)).astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-23)


def normal_numpy(seeds: np.ndarray, positions: np.ndarray, step: int | np.ndarray, purpose: int, count: int) -> np.ndarray:
    """Return `[N, count]` fp32, the numbers `normal` draws for int64 `seeds` and `positions` `[N]`, within its tolerance."""
    groups, step = np.arange(-(-count // 4)), np.asarray(step)[..., None]
    words = philox4x32_numpy((np.asarray(positions)[:, None], step, purpose, groups[None]), np.asarray(seeds)[:, None])
    u = [((word >> np.uint64(9)).astype(np.float64) + 0.5) * 2.0**-23 for word in words]
    four = [np.sqrt(-2.0 * np.log(u[first])) * turn(2.0 * np.pi * u[first + 1]) for first in (0, 2) for turn in (np.cos, np.sin)]
    return np.stack(four, 2).reshape(len(words[0]), -1)[:, :count].astype(np.float32)
