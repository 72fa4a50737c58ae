"""TESS 2's noise: how much of the simplex is signal at each of a decode's forward passes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# f(s) = cos^2((s + OFFSET) / (1 + OFFSET) pi / 2); the reference's "squaredcos_improved_ddpm".
OFFSET = 1e-4
TRAINING_STEPS = 5000


@dataclass(frozen=True)
class SimplexPlan:
    """Numbers of every forward pass of a decode, the noisiest first: pass i sees level t = steps - 1 - i.

    signal: sqrt(abar_t), sigma: sqrt(1 - abar_t), time: t / steps; all `[S]` float32.
    """

    signal: np.ndarray
    sigma: np.ndarray
    time: np.ndarray


def signal_shares(steps: int) -> np.ndarray:
    """Return abar_i = f(i / steps) / f(0) for i = 0 .. steps - 1, float64; abar_0 is 1."""
    return signal_share(np.arange(steps) / steps)


def signal_share(level: np.ndarray | float) -> np.ndarray:
    """Return abar at a level in [0, 1), float64."""
    return np.cos((np.asarray(level) + OFFSET) / (1 + OFFSET) * np.pi / 2) ** 2 / np.cos(OFFSET / (1 + OFFSET) * np.pi / 2) ** 2


def plan_simplex(steps: int) -> SimplexPlan:
    """Plan a decode of `steps` forward passes: the schedule is discretised anew for every number of them."""
    shares = signal_shares(steps)[::-1]
    times = np.arange(steps)[::-1] / steps
    return SimplexPlan(*(part.astype(np.float32) for part in (np.sqrt(shares), np.sqrt(1 - shares), times)))
