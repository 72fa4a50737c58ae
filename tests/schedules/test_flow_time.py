"""The numbers of L2D: evaluation counts, the grid, the temperature ladder, and tableaux that are consistent and of their order."""

from __future__ import annotations

import math

import pytest
import torch

from lad_engine.config import ADAPTIVE_SOLVERS, SOLVERS, SamplingParams
from lad_engine.errors import ConfigError
from lad_engine.profiles import profile_params
from lad_engine.samplers.ode_solvers import integrate, integrate_adaptively
from lad_engine.schedules.flow_time import FIRST_STEP, TABLEAUX, FlowPlan, evaluations_for, input_scale, velocity_temperature

ORDER = {"euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4}


def test_settings_name_exactly_the_tableaux():
    assert tuple(TABLEAUX) == SOLVERS
    assert tuple(name for name, tableau in TABLEAUX.items() if tableau.error) == ADAPTIVE_SOLVERS


@pytest.mark.parametrize(
    ("solver", "endpoints", "evaluations"),
    [("euler", 15, 15), ("midpoint", 8, 15), ("midpoint", 64, 127), ("rk4", 5, 17), ("heun3", 5, 13)],
)
def test_evaluations_per_token_are_those_of_the_paper(solver, endpoints, evaluations):
    assert evaluations_for(solver, endpoints) == evaluations
    plan = FlowPlan(solver, evaluations)
    assert plan.evaluations == evaluations and len(plan.intervals) == endpoints - 1
    # one evaluation more reads the token; one step fewer of budget is one interval fewer
    assert len(FlowPlan(solver, evaluations - 1).intervals) == endpoints - 2


def test_solvers_that_touch_the_end_do_not_ask_there():
    for solver, unasked in (("euler", 0), ("midpoint", 0), ("heun2", 1), ("heun3", 0), ("rk4", 1)):
        plan = FlowPlan(solver, 17)
        assert len(plan.stages) - plan.asked == unasked
    assert FlowPlan("rk4", 17, end=0.99).asked == 16


def test_without_room_for_a_step_the_token_is_read_at_time_zero():
    for solver in SOLVERS:
        assert FlowPlan(solver, 1).read_time == 0.0 and FlowPlan(solver, 1).evaluations == 1
    assert FlowPlan("fehlberg2", 120).attempts == 59 and FlowPlan("fehlberg2", 120).evaluations == 120


def test_an_adaptive_solver_has_no_endpoints():
    with pytest.raises(ConfigError, match="solver is fehlberg2, expected one of fixed steps"):
        evaluations_for("fehlberg2", 8)


def test_the_midpoint_ladder_of_code_tasks_falls_in_fourteenths_to_zero():
    params = profile_params("l2d_code", {})
    plan = FlowPlan(params.solver, params.steps, params.flow_end)
    taus = [velocity_temperature(t, params.flow_temperature, params.flow_power, plan.end) for _, t in plan.stages]
    assert taus == pytest.approx([k / 14 for k in range(13, -1, -1)], abs=1e-12)
    assert [round(tau, 3) for tau in (taus[0], taus[1], taus[-2], taus[-1])] == [0.929, 0.857, 0.071, 0.0]


def test_other_temperatures():
    assert velocity_temperature(1.0, 0.7, 0.0, 1.0) == 0.7
    assert velocity_temperature(1.2, 1.0, 1.0, 1.0) == 0.0
    assert velocity_temperature(0.5, 2.0, 2.0, 1.0) == 0.5
    # Euler reads its temperature a whole step later, an adaptive pair where it stands.
    assert FlowPlan("euler", 5).stages[0] == (0.0, 0.25)
    assert TABLEAUX["fehlberg2"].temperature_lead == 0.0


def test_default_profile_takes_the_most_probable_target_and_samples_the_token():
    params = profile_params("l2d", {})
    assert (params.steps, params.solver, params.flow_temperature, params.temperature, params.top_k) == (15, "midpoint", 0.0, 1.0, 0)
    assert isinstance(params, SamplingParams)


def test_inputs_have_unit_variance():
    assert input_scale(0.0, 64.0) == 1 / 64 and input_scale(1.0, 64.0) == 1.0
    assert input_scale(0.5, 64.0) == pytest.approx(1 / math.sqrt(32**2 + 0.25))


@pytest.mark.parametrize("name", SOLVERS)
def test_tableaux_are_consistent(name):
    tableau = TABLEAUX[name]
    assert sum(tableau.weights) == pytest.approx(1.0)
    for node, row in zip(tableau.nodes, tableau.stages, strict=True):
        assert sum(row) == pytest.approx(node, abs=1e-12)
    assert sum(tableau.error) == pytest.approx(0.0, abs=1e-12)


def test_fehlbergs_pair_has_the_published_numbers():
    tableau = TABLEAUX["fehlberg2"]
    assert tableau.stages == ((), (0.5,), (1 / 256, 255 / 256))
    assert tableau.weights == (1 / 512, 255 / 256, 1 / 512) and tableau.error == (-1 / 512, 0.0, 1 / 512) and tableau.order == 2


def decay_error(solver: str, intervals: int) -> float:
    """Return the error at t = 1 of dx/dt = sin(2 t) - 1.5 x, against a fine rk4."""

    def solve(name: str, count: int) -> torch.Tensor:
        plan = FlowPlan(name, len(TABLEAUX[name].nodes) * count + 1)

        def field(stage: int):
            t = plan.stages[stage][0]
            return lambda x: math.sin(2 * t) - 1.5 * x

        return integrate(field, torch.ones(1, 1, dtype=torch.float64), plan.tableau, plan.intervals)

    return float((solve(solver, intervals) - solve("rk4", 400)).abs())


@pytest.mark.parametrize(("solver", "order"), ORDER.items())
def test_halving_the_step_shrinks_the_error_by_the_order(solver, order):
    coarse, fine = decay_error(solver, 40), decay_error(solver, 80)
    assert abs(math.log2(coarse / fine) - order) < 0.3


@pytest.mark.parametrize("solver", ADAPTIVE_SOLVERS)
def test_an_adaptive_pair_meets_its_tolerance_and_rows_choose_their_own_steps(solver):
    rates = torch.tensor([[1.0], [25.0], [0.0]], dtype=torch.float64)
    start = torch.ones(3, 1, dtype=torch.float64)

    def field(t, x, unneeded):
        return -rates * x

    def solve(rows: slice, reads_flags: bool):
        options = {"end": 0.9, "attempts": 2000, "first_step": FIRST_STEP, "tolerance": 1e-6, "reads_flags": reads_flags}
        own = rates[rows]
        return integrate_adaptively(lambda t, x, _: -own * x, start[rows], -own * start[rows], TABLEAUX[solver], **options)

    x, taken = solve(slice(None), True)
    assert torch.allclose(x, torch.exp(-rates * 0.9), atol=2e-4)
    assert int(taken[1]) > int(taken[0]) > int(taken[2])
    for row in range(3):
        alone, count = solve(slice(row, row + 1), True)
        assert torch.equal(alone[0], x[row]) and int(count) == int(taken[row])
    # Doing every attempt changes nothing.
    whole, count = solve(slice(None), False)
    assert torch.equal(whole, x) and torch.equal(count, taken)


def test_a_row_that_runs_out_of_attempts_goes_the_rest_along_its_last_slope():
    slope = torch.full((1, 2), 3.0)
    options = {"end": 1.0, "first_step": FIRST_STEP, "tolerance": 1e-5, "reads_flags": True}
    x, taken = integrate_adaptively(lambda t, x, _: slope, torch.zeros(1, 2), slope, TABLEAUX["fehlberg2"], attempts=1, **options)
    assert torch.allclose(x, slope) and int(taken) == 1
