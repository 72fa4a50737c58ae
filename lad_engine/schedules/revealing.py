"""Masked diffusion: at which step each position is revealed, or how many stay hidden after each step; computed on the host."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..config import PREDRAWN, SamplingParams
from .masking import block_steps, transfer_counts


@dataclass(frozen=True)
class RevealPlan:
    """Every per-step number of one request, `[S]` int64 each, S the forward passes it takes at most.

    order: `[A]` int64, the answer columns in the order in which they are read. first, count: step s reads order[first : first + count];
    for a rule that decides while it runs first is 0, and order is laid out anew at each step (see `denoisers.masked`).
    after: hidden positions that are left after step s, at most; for the rule "confidence" DiffuLLaMA's cutoff.
    """

    order: np.ndarray
    first: np.ndarray
    count: np.ndarray
    after: np.ndarray


def uniform_reveal_steps(draws: np.ndarray, steps: int) -> np.ndarray:
    """Return the step of every position, uniform on 0 .. steps-1.

    DiffuLLaMA reveals a hidden position with probability 1/(t+1) before pass t = T-1 .. 1 and fills the rest after the last pass, which
    gives every position a step that is uniform on T and independent of the logits (arXiv 2410.17891, Algorithm 2).

    Args:
        draws: `[N]` inside (0, 1).
    """
    return np.minimum((draws.astype(np.float64) * steps).astype(np.int64), steps - 1)


def dream_times(steps: int, floor: float) -> np.ndarray:
    """Return t_0 = 1 .. t_steps = floor, evenly spaced, `[steps + 1]` fp32 with the rounding of torch.linspace."""
    one = np.float32(1)
    width = (np.float32(floor) - one) / np.float32(steps)
    index = np.arange(steps + 1, dtype=np.float32)
    rising, falling = one + width * index, np.float32(floor) - width * (np.float32(steps) - index)
    return np.where(np.arange(steps + 1) < (steps + 1) // 2, rising, falling).astype(np.float32)


def origin_reveal_steps(draws: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Return the step of every position under Dream's rule "origin".

    A hidden position is revealed at step i with probability 1 - t_{i+1} / t_i, at the last with 1, so it is still hidden after step i
    with probability t_{i+1}.
    """
    return (draws[:, None] < times[None, 1:-1]).sum(1).astype(np.int64)


def dream_hidden_counts(hidden: int, times: np.ndarray) -> np.ndarray:
    """Return how many positions stay hidden after each step of Dream's ordered rules: int(n (1 - t_{i+1} / t_i)) are revealed of n."""
    steps = len(times) - 1
    left, out = hidden, []
    for step in range(steps - 1):
        left -= int(np.float32(left) * (np.float32(1) - times[step + 1] / times[step]))
        out.append(left)
    return np.array([*out, 0], np.int64)


def cutoff_counts(positions: int, steps: int) -> np.ndarray:
    """Return floor(positions t / T) for t = T-1 .. 0: DiffuLLaMA's cutoff after each pass of its confidence rule."""
    return np.array([positions * (steps - 1 - step) // steps for step in range(steps)], np.int64)


def transfer_hidden_counts(is_hidden: np.ndarray, steps: int, block_length: int | None) -> np.ndarray:
    """Return how many positions stay hidden after each step of LLaDA's budget: equal shares of each block's, left to right.

    Raises:
        RequestError: there are fewer steps than blocks.
    """
    shares: list[int] = []
    for start, end, own_steps in block_steps(len(is_hidden), steps, block_length):
        shares += transfer_counts(int(is_hidden[start:end].sum()), own_steps)
    return int(is_hidden.sum()) - np.cumsum(np.array(shares, np.int64))


def check_steps(params: SamplingParams, answer_length: int) -> None:
    """Raise RequestError where `plan_reveal` would: there are fewer steps than blocks."""
    if params.reveal == "transfer":
        block_steps(answer_length, params.steps, params.block_length)


def plan_reveal(params: SamplingParams, is_hidden: np.ndarray, draws: np.ndarray) -> RevealPlan:
    """Compute every per-step number of one request.

    Args:
        is_hidden: `[A]` bool, answer positions to reveal, at least one. draws: `[A]` fp32 in (0, 1), one per position.
    Raises:
        RequestError: there are fewer steps than blocks.
    """
    hidden = np.flatnonzero(is_hidden)
    others = np.flatnonzero(~is_hidden)
    if params.reveal in PREDRAWN:
        return _predrawn(params, hidden, others, draws)
    n, steps = len(hidden), params.steps
    order = np.concatenate([hidden, others])
    if params.reveal == "confidence":
        # What is revealed already still competes, so every position is read each time.
        return RevealPlan(order, np.zeros(steps, np.int64), np.full(steps, n, np.int64), cutoff_counts(n, steps))
    if params.reveal == "transfer":
        after = transfer_hidden_counts(is_hidden, steps, params.block_length)
    else:
        after = dream_hidden_counts(n, dream_times(steps, params.time_floor))
    before = np.concatenate([[n], after[:-1]])
    width = params.block_length if params.reveal == "transfer" and params.block_length else len(is_hidden)
    return RevealPlan(order, np.zeros(steps, np.int64), np.minimum(before, width), after)


def _predrawn(params: SamplingParams, hidden: np.ndarray, others: np.ndarray, draws: np.ndarray) -> RevealPlan:
    if params.reveal == "random":
        step = uniform_reveal_steps(draws[hidden], params.steps)
    else:
        step = origin_reveal_steps(draws[hidden], dream_times(params.steps, params.time_floor))
    if params.early_stop:
        # A pass that reveals nothing changes nothing, so it is not made.
        step = np.unique(step, return_inverse=True)[1].reshape(-1)
    steps = int(step.max()) + 1 if params.early_stop else params.steps
    count = np.bincount(step, minlength=steps)
    order = np.concatenate([hidden[np.argsort(step, kind="stable")], others])
    return RevealPlan(order, np.cumsum(count) - count, count, len(hidden) - np.cumsum(count))
