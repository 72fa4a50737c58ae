"""Golden tables of the specification, and the counts the authors' code arrives at."""

from __future__ import annotations

import numpy as np
import pytest

from lad_engine.config import SamplingParams
from lad_engine.errors import RequestError
from lad_engine.schedules.masking import (
    block_steps,
    block_width,
    cluster_shape,
    exponential_share,
    keep_count,
    mask_probability,
    plan_request,
    renoise_count,
    transfer_counts,
    visible_lengths,
)

# LAD specification 1.1, eta0 = 1, N = 64.
GOLDEN = {1.0: {0: 1.0, 16: 0.650, 32: 0.378, 48: 0.165, 63: 0.0092}, 5.0: {0: 1.0, 16: 0.282, 32: 0.076, 48: 0.017, 63: 0.0006}}


@pytest.mark.parametrize("sharpness", GOLDEN)
def test_eta_has_the_paper_values(sharpness):
    for step, wanted in GOLDEN[sharpness].items():
        assert exponential_share(step, 64, sharpness) == pytest.approx(wanted, abs=5e-4 if wanted > 0.01 else 5e-5)
    assert exponential_share(64, 64, sharpness) == 0.0


def test_linear_probability_ends_at_zero_after_the_last_step():
    params = SamplingParams(noise_schedule="linear", noise_start=0.8, steps=4)
    assert [mask_probability(params, i) for i in range(4)] == pytest.approx([0.6, 0.4, 0.2, 0.0])


def test_exponential_counts_truncate_and_linear_counts_round_half_to_even():
    exponential = SamplingParams(noise_start=0.5, noise_sharpness=1.0, steps=64)
    # 0.650 * 252 * 0.5 = 81.96 and 0.0092 * 252 * 0.5 = 1.16
    assert [renoise_count(exponential, i, 252) for i in (0, 16, 63)] == [126, 81, 1]
    linear = SamplingParams(noise_schedule="linear", noise_start=1.0, steps=2)
    # p = 0.5: 0.5 -> 0, 1.5 -> 2, 2.5 -> 2
    assert [renoise_count(linear, 0, A) for A in (1, 3, 5)] == [0, 2, 2]
    assert [keep_count(linear, 0, A) for A in (1, 3, 5)] == [0, 2, 2]


def test_cluster_shapes_follow_the_space():
    assert cluster_shape(0, 0.0) == (0, 1)
    assert cluster_shape(10, 0.0) == (10, 1)
    assert cluster_shape(10, 0.7) == (3, 3)
    assert cluster_shape(10, 1.0) == (1, 10)
    assert cluster_shape(1, 0.9) == (1, 1)


def test_transfer_budgets_give_the_remainder_to_the_first_steps():
    assert transfer_counts(10, 4) == [3, 3, 2, 2]
    assert transfer_counts(3, 5) == [1, 1, 1, 0, 0]
    assert transfer_counts(0, 2) == [0, 0]
    # LLaDA's GSM8K setting: 256 tokens, 256 steps, blocks of 8.
    assert block_steps(256, 256, 8) == [(8 * b, 8 * b + 8, 8) for b in range(32)]
    assert block_steps(10, 5, 4) == [(0, 4, 2), (4, 8, 2), (8, 10, 1)]
    assert block_steps(10, 5, None) == [(0, 10, 5)]
    with pytest.raises(RequestError, match="expected at least 3"):
        block_steps(12, 2, 4)


def test_blocks_of_lad_are_wider_where_there_are_fewer_steps_than_blocks():
    assert [block_width(32, steps, 2) for steps in (32, 16, 15, 8, 4, 3, 1)] == [2, 2, 5, 8, 16, 32, 32]
    assert block_width(10, 5, None) == 10
    # A long text with a short gap: 80 positions in 32 steps.
    params = SamplingParams(steps=32, remasking="transfer", block_length=2, temperature=0.0)
    is_open = np.zeros(80, bool)
    is_open[40:46] = True
    plan = plan_request(params, is_open, is_open)
    assert sum(plan.transfer) == 6 and len(plan.transfer) == 32 and plan.block_end[-1] == 80


def test_the_window_grows_by_k_and_must_reach_the_end():
    assert visible_lengths(10, 4, None).tolist() == [10, 10, 10, 10]
    assert visible_lengths(10, 4, 4).tolist() == [4, 8, 10, 10]
    with pytest.raises(RequestError, match="Give at least 5 steps"):
        visible_lengths(10, 4, 2)


def test_a_plan_spends_its_budget_on_masked_positions_of_each_block():
    is_open = np.ones(10, bool)
    is_masked = is_open.copy()
    is_masked[[1, 5, 6]] = False
    plan = plan_request(SamplingParams(remasking="transfer", block_length=5, steps=6), is_open, is_masked)
    assert plan.transfer.tolist() == [2, 1, 1, 1, 1, 1]
    assert plan.block_start.tolist() == [0, 0, 0, 5, 5, 5]
    assert plan.transfer.sum() == is_masked.sum()


def test_with_a_threshold_a_plan_gives_the_width_of_its_blocks_and_the_same_budget():
    is_open = np.ones(10, bool)
    params = SamplingParams(remasking="transfer", block_length=4, steps=6, threshold=0.9)
    plan, fixed = plan_request(params, is_open, is_open), plan_request(params.replace(threshold=None), is_open, is_open)
    assert plan.transfer.tolist() == fixed.transfer.tolist() == [2, 2, 2, 2, 1, 1]
    assert plan.block_start.tolist() == [0] * 6 and plan.block_end.tolist() == [4] * 6
    assert plan_request(params.replace(steps=2), is_open, is_open).block_end.tolist() == [10, 10]


def test_the_last_step_puts_no_noise_back():
    for schedule in ("exponential", "linear"):
        plan = plan_request(SamplingParams(noise_schedule=schedule, steps=5), np.ones(8, bool), np.ones(8, bool))
        assert (plan.count[-1], plan.probability[-1], plan.clusters[-1], plan.keep[-1]) == (0, 0.0, 0, 8)
        assert (np.diff(plan.count) <= 0).all() and (np.diff(plan.keep) >= 0).all()


def test_counts_are_of_open_positions_on_the_canvas():
    is_open = np.array([True, False, True, True, False, True])
    plan = plan_request(SamplingParams(tokens_per_step=3, steps=4, noise_start=1.0), is_open, is_open)
    assert plan.visible.tolist() == [3, 6, 6, 6] and plan.grows.tolist() == [True, True, False, False]
    assert plan.count[0] == 2
