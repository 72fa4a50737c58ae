"""How much is re-noised, kept, shown or transferred at every step of one request."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..config import SamplingParams
from ..errors import RequestError


@dataclass(frozen=True)
class Plan:
    """Every per-step number of one request, arrays of length S = params.steps.

    visible: int64, answer columns on the canvas. grows: bool, whether that is more than the step before.
    probability: float64, eta after the step. count: int64, open positions to re-noise. keep: int64, open positions to retain.
    clusters, cluster_size: int64, the Space's draw with replacement.
    transfer, block_start, block_end: int64, LLaDA budget and the answer columns it is spent in; with a threshold, under which a block may
    be done early, 0 and the width of all blocks instead.
    The last step re-noises nothing: its probability, count and clusters are 0 and keep is every open position.
    """

    visible: np.ndarray
    grows: np.ndarray
    probability: np.ndarray
    count: np.ndarray
    keep: np.ndarray
    clusters: np.ndarray
    cluster_size: np.ndarray
    transfer: np.ndarray
    block_start: np.ndarray
    block_end: np.ndarray


def exponential_share(step: int, steps: int, sharpness: float) -> float:
    """Return (exp(-s i/N) - exp(-s)) / (1 - exp(-s)): 1 at step 0, 0 at step N (LAD paper, section 2.5)."""
    end = np.exp(-sharpness)
    return float((np.exp(-sharpness * (step / steps)) - end) / (1 - end))


def mask_probability(params: SamplingParams, step: int) -> float:
    """Return eta(i), the share of open positions that is noise after step i.

    exponential: noise_start * exponential_share(i);  linear: noise_start * (1 - (i + 1) / N), the authors' later samplers.
    """
    if params.noise_schedule == "linear":
        return max(0.0, min(1.0, params.noise_start * (1 - (step + 1) / params.steps)))
    return exponential_share(step, params.steps, params.noise_sharpness) * params.noise_start


def renoise_count(params: SamplingParams, step: int, positions: int) -> int:
    """Return how many of `positions` are re-noised after step i: truncated (exponential, the Space), or rounded half to even (linear)."""
    if params.noise_schedule == "linear":
        return round(mask_probability(params, step) * positions)
    # The Space multiplies in this order, and a product one ulp off can truncate to another count.
    return int(exponential_share(step, params.steps, params.noise_sharpness) * positions * params.noise_start)


def keep_count(params: SamplingParams, step: int, positions: int) -> int:
    """Return round((1 - eta(i)) * positions), half to even: how many positions retention keeps after step i."""
    return min(positions, max(0, round((1 - mask_probability(params, step)) * positions)))


def cluster_shape(count: int, cluster_size: float) -> tuple[int, int]:
    """Return (clusters, positions per cluster) of the Space's draw for `count` positions; cluster_size is its share c in [0, 1]."""
    if count == 0:
        return 0, 1
    clusters = max(1, int((1 - cluster_size) * count))
    return clusters, max(1, int(count / clusters))


def visible_lengths(answer_length: int, steps: int, tokens_per_step: int | None) -> np.ndarray:
    """Return the answer columns on the canvas at each step, `[steps]` int64.

    Raises:
        RequestError: the growing window does not reach the end of the answer.
    """
    if tokens_per_step is None:
        return np.full(steps, answer_length, np.int64)
    if steps * tokens_per_step < answer_length:
        raise RequestError(
            f"steps: {steps} steps of {tokens_per_step} tokens show {steps * tokens_per_step} positions, expected {answer_length}. "
            f"Give at least {-(-answer_length // tokens_per_step)} steps or more tokens_per_step."
        )
    return np.minimum(np.arange(1, steps + 1, dtype=np.int64) * tokens_per_step, answer_length)


def transfer_counts(masked: int, steps: int) -> list[int]:
    """Share `masked` positions over `steps`: masked // steps each, one more in the first masked % steps (LLaDA)."""
    return [masked // steps + (step < masked % steps) for step in range(steps)]


def block_steps(answer_length: int, steps: int, block_length: int | None) -> list[tuple[int, int, int]]:
    """Split an answer in blocks and the steps among them: (start, end, steps) per block, left to right, spare steps to the first.

    Raises:
        RequestError: there are fewer steps than blocks.
    """
    width = min(block_length or answer_length, answer_length)
    blocks = -(-answer_length // width)
    if steps < blocks:
        raise RequestError(f"steps is {steps}, expected at least {blocks}, one per block of {width} tokens. Raise steps or block_length.")
    return [(b * width, min(answer_length, (b + 1) * width), n) for b, n in enumerate(transfer_counts(steps, blocks))]


def block_width(answer_length: int, steps: int, block_length: int | None) -> int:
    """Return how wide the blocks of a LAD answer are: as asked, or so that each has two steps where there are fewer steps than blocks."""
    asked = block_length or answer_length
    return asked if steps * asked >= answer_length else -(-answer_length // max(1, steps // 2))


def check_steps(params: SamplingParams, answer_length: int) -> None:
    """Raise RequestError where `plan_request` would: the steps cannot show an answer of so many positions."""
    visible_lengths(answer_length, params.steps, params.tokens_per_step)


def plan_request(params: SamplingParams, is_open: np.ndarray, is_masked: np.ndarray) -> Plan:
    """Compute every per-step number of one request.

    Args:
        is_open: `[A]` bool, answer positions that may change. is_masked: `[A]` bool, the open ones that start as MASK.
    Raises:
        RequestError: the steps cannot show the whole answer.
    """
    answer_length, steps = len(is_open), params.steps
    visible = visible_lengths(answer_length, steps, params.tokens_per_step)
    positions = [int(is_open[:shown].sum()) for shown in visible]
    before_last = range(steps - 1)
    count = [renoise_count(params, i, positions[i]) for i in before_last] + [0]
    shapes = [cluster_shape(n, params.cluster_size) for n in count]
    transfer, block_start, block_end = [], [], []
    if params.remasking == "transfer":
        width = block_width(answer_length, steps, params.block_length)
        for start, end, n in block_steps(answer_length, steps, width):
            transfer += transfer_counts(int(is_masked[start:end].sum()), n)
            block_start += [0 if params.threshold is not None else start] * n
            block_end += [width if params.threshold is not None else end] * n
    return Plan(
        visible=visible,
        grows=np.diff(visible, prepend=0) > 0,
        probability=np.array([mask_probability(params, i) for i in before_last] + [0.0]),
        count=np.array(count, np.int64),
        keep=np.array([keep_count(params, i, positions[i]) for i in before_last] + [positions[-1]], np.int64),
        clusters=np.array([shape[0] for shape in shapes], np.int64),
        cluster_size=np.array([shape[1] for shape in shapes], np.int64),
        transfer=np.array(transfer or [0] * steps, np.int64),
        block_start=np.array(block_start or [0] * steps, np.int64),
        block_end=np.array(block_end or [0] * steps, np.int64),
    )
