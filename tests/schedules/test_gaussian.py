"""TESS 2's schedule: the reference's numbers at 100 steps, and a table per number of steps."""

from __future__ import annotations

import numpy as np
import pytest

from lad_engine.schedules.gaussian import plan_simplex, signal_share, signal_shares

# The reference's abar at T = 100, six digits.
GOLDEN = {0: 1.0, 1: 0.999748, 25: 0.85347, 50: 0.499921, 75: 0.146419, 99: 0.000247}


@pytest.mark.parametrize(("index", "wanted"), GOLDEN.items())
def test_the_shares_of_a_hundred_steps_are_the_references(index, wanted):
    assert signal_shares(100)[index] == pytest.approx(wanted, abs=6e-7)


def test_the_schedule_is_discretised_anew_for_every_number_of_steps():
    assert np.allclose(signal_shares(250)[::5], signal_shares(50), rtol=0, atol=1e-15)
    assert signal_share(0.5) == pytest.approx(signal_shares(100)[50], abs=1e-15)


def test_the_offset_is_not_the_usual_one():
    usual = np.cos((0.25 + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    assert abs(signal_shares(100)[25] - usual) > 1e-3


def test_a_plan_counts_down_to_no_noise_at_time_zero():
    plan = plan_simplex(100)
    assert plan.time[0] == pytest.approx(0.99) and plan.time[-1] == 0
    assert plan.signal[-1] == 1 and plan.sigma[-1] == 0
    assert np.all(np.diff(plan.signal) > 0) and np.allclose(plan.signal**2 + plan.sigma**2, 1, atol=1e-6)
    assert plan.signal[49] ** 2 == pytest.approx(signal_shares(100)[50], abs=1e-6)


def test_one_step_is_one_pass_without_a_level():
    plan = plan_simplex(1)
    assert plan.time.tolist() == [0.0] and plan.signal.tolist() == [1.0]
