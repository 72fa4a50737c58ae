"""When masked positions are revealed: the numbers of DiffuLLaMA, Dream and LLaDA, and the law of what is drawn up front."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lad_engine.config import SamplingParams
from lad_engine.errors import RequestError
from lad_engine.schedules.revealing import (
    cutoff_counts,
    dream_hidden_counts,
    dream_times,
    origin_reveal_steps,
    plan_reveal,
    transfer_hidden_counts,
    uniform_reveal_steps,
)

# Of a right implementation, one run in a hundred thousand fails a test at this bound; the draws are fixed, so it fails always or never.
FALSE_ALARM_Z = 4.42


def test_a_position_revealed_at_rate_one_over_t_plus_one_has_a_uniform_step():
    for steps in (1, 2, 7, 64, 256):
        left, chances = 1.0, []
        for t in range(steps - 1, 0, -1):
            chances.append(left / (t + 1))
            left *= 1 - 1 / (t + 1)
        assert np.allclose([*chances, left], 1 / steps)


def test_drawn_steps_are_uniform():
    steps, draws = 16, (np.arange(1 << 16) + 0.5) / (1 << 16)
    assert np.bincount(uniform_reveal_steps(draws, steps)).tolist() == [1 << 12] * steps
    assert uniform_reveal_steps(np.float32([2**-24, 1 - 2**-24]), 64).tolist() == [0, 63]


def test_a_plan_of_2048_positions_in_256_passes_reads_about_8_rows_a_pass():
    draws = np.random.default_rng(0).random(2048).astype(np.float32)
    params = SamplingParams(steps=256, reveal="random", early_stop=False)
    plan = plan_reveal(params, np.ones(2048, bool), draws)
    assert len(plan.count) == 256 and plan.count.sum() == 2048 and plan.count.mean() == 8
    # A binomial of 2048 draws at 1/256 has a spread of sqrt(8 (1 - 1/256)); no pass comes near the 2048 rows of the plain loop.
    assert plan.count.max() < 8 + 6 * math.sqrt(8)
    assert sorted(plan.order.tolist()) == list(range(2048))
    assert np.array_equal(plan.first + plan.count, np.cumsum(plan.count)) and plan.after[-1] == 0


def test_passes_that_reveal_nothing_are_left_out_only_where_early_stop_lets_them():
    draws = np.random.default_rng(1).random(8).astype(np.float32)
    kept = plan_reveal(SamplingParams(steps=64, reveal="random", early_stop=False), np.ones(8, bool), draws)
    cut = plan_reveal(SamplingParams(steps=64, reveal="random"), np.ones(8, bool), draws)
    assert len(kept.count) == 64
    assert len(cut.count) <= 8 and cut.count.min() >= 1 and cut.order.tolist() == kept.order.tolist()


def test_cutoffs_are_the_floors_of_the_confidence_sampler():
    assert cutoff_counts(10, 4).tolist() == [7, 5, 2, 0]
    assert cutoff_counts(256, 64).tolist() == [4 * t for t in range(63, -1, -1)]
    for n, steps in ((49, 49), (7, 64), (100, 3)):
        assert cutoff_counts(n, steps).tolist() == [n * t // steps for t in range(steps - 1, -1, -1)]


@pytest.mark.parametrize("steps", [1, 2, 3, 8, 64, 127, 512])
@pytest.mark.parametrize("floor", [1e-3, 0.0, 0.1])
def test_dreams_times_and_counts_are_those_of_its_own_arithmetic(steps, floor):
    times = dream_times(steps, floor)
    wanted = torch.linspace(1, floor, steps + 1)
    assert np.abs(times - wanted.numpy()).max() <= 2**-23
    for hidden in (1, 17, 128, 512):
        left, counts = torch.tensor(hidden), []
        for i in range(steps):
            left = left - (int(left * (1 - wanted[i + 1] / wanted[i])) if i < steps - 1 else int(left))
            counts.append(int(left))
        assert dream_hidden_counts(hidden, wanted.numpy()).tolist() == counts
        assert dream_hidden_counts(hidden, times)[-1] == 0


def test_origin_hides_a_position_as_long_as_its_schedule_says():
    times, N = dream_times(12, 1e-3), 1 << 16
    steps = origin_reveal_steps(np.random.default_rng(2).random(N).astype(np.float32), times)
    for i in range(12):
        share, wanted = (steps > i).mean(), float(times[i + 1]) if i < 11 else 0.0
        assert abs(share - wanted) <= FALSE_ALARM_Z * math.sqrt(wanted * (1 - wanted) / N)


def test_transfer_spends_equal_shares_block_by_block():
    assert transfer_hidden_counts(np.ones(12, bool), 6, 4).tolist() == [10, 8, 6, 4, 2, 0]
    assert transfer_hidden_counts(np.ones(7, bool), 3, None).tolist() == [4, 2, 0]
    gap = np.array([1, 1, 1, 0, 0, 0, 0, 1, 0, 0, 1, 1], bool)
    assert transfer_hidden_counts(gap, 6, 4).tolist() == [4, 3, 2, 2, 1, 0]
    with pytest.raises(RequestError, match="expected at least 3, one per block"):
        transfer_hidden_counts(np.ones(12, bool), 2, 4)
