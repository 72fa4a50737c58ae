"""Renoise draws exactly n eligible positions without replacement, by weight, and nothing else decides."""

from __future__ import annotations

import pytest
import torch

from lad_engine.kernels.random.reference import RENOISE, RETAIN, uniform
from lad_engine.kernels.renoise import OP

MASK = 16


@pytest.fixture(params=["reference", "cpu"])
def renoise(request):
    try:
        return OP.implementation(request.param)
    except ImportError as error:
        pytest.skip(f"renoise={request.param} cannot be imported here: {error}")


def _call(renoise, count, *, B=1, R=64, eligible=None, weight=None, seeds=None, step=0, **rest):
    return renoise(
        torch.full((B, R), 7),
        torch.ones(B, R, dtype=torch.bool) if eligible is None else eligible,
        torch.ones(B, R) if weight is None else weight,
        torch.as_tensor(count).expand(B),
        torch.arange(B) if seeds is None else seeds,
        torch.tensor(step),
        MASK,
        **rest,
    )


def test_exactly_n_positions_are_masked_and_the_rest_untouched(renoise):
    for n in range(65):
        out = _call(renoise, n)
        assert int((out == MASK).sum()) == n
        assert int((out == 7).sum()) == 64 - n


def test_a_count_beyond_the_eligible_takes_them_all_and_a_negative_one_none(renoise):
    eligible = torch.rand(2, 64) < 0.5
    assert torch.equal(_call(renoise, 1000, B=2, eligible=eligible) == MASK, eligible)
    assert not (_call(renoise, -3, B=2, eligible=eligible) == MASK).any()


def test_only_eligible_positions_are_drawn_and_still_exactly_n(renoise):
    eligible = torch.zeros(50, 64, dtype=torch.bool)
    eligible[:, 3::7] = True
    drawn = _call(renoise, 5, B=50, eligible=eligible) == MASK
    assert not (drawn & ~eligible).any()
    assert (drawn.sum(1) == 5).all()


def test_equal_weights_draw_every_position_equally_often(renoise):
    drawn = (_call(renoise, 5, B=8000, R=20) == MASK).double().mean(0)
    # Probability 1/4, standard error 0.0048.
    assert (drawn - 0.25).abs().max() < 0.02


def test_weights_are_the_odds_of_each_draw(renoise):
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0])
    first = (_call(renoise, 1, B=20000, R=4, weight=weight.expand(20000, 4).contiguous()) == MASK).double().mean(0)
    assert (first - weight / 10).abs().max() < 0.015
    both = (_call(renoise, 2, B=20000, R=4, weight=weight.expand(20000, 4).contiguous()) == MASK).double().mean(0)
    odds = weight.double() / 10
    second = torch.tensor([sum(float(odds[j] * odds[i] / (1 - odds[j])) for j in range(4) if j != i) for i in range(4)])
    assert (both - (odds + second)).abs().max() < 0.015


def test_positions_of_zero_weight_are_drawn_last(renoise):
    weight = torch.ones(30, 64)
    weight[:, ::2] = 0
    assert not (_call(renoise, 32, B=30, weight=weight) == MASK)[:, ::2].any()
    assert ((_call(renoise, 40, B=30, weight=weight) == MASK).sum(1) == 40).all()


def test_ties_go_to_the_lower_index(renoise):
    # Seeds are searched for two positions that drew the same number: the only way for equal weights to tie.
    u = uniform(torch.arange(300), torch.arange(1024), torch.tensor(0), RENOISE)
    values, order = u.sort(dim=1, stable=True, descending=True)
    rows, ranks = (values[:, 1:] == values[:, :-1]).nonzero(as_tuple=True)
    assert len(rows)
    for row, rank in zip(rows.tolist(), ranks.tolist(), strict=True):
        low, high = sorted(order[row, rank : rank + 2].tolist())
        out = _call(renoise, rank + 1, R=1024, seeds=torch.tensor([row]))[0]
        assert out[low] == MASK
        assert out[high] == 7


def test_a_row_does_not_depend_on_its_slot_or_its_batch_mates(renoise):
    seeds = torch.tensor([5, 99, 5, 2**40])
    out = _call(renoise, 20, B=4, seeds=seeds)
    assert torch.equal(out[0], out[2])
    assert not torch.equal(out[0], out[1])
    assert torch.equal(out[3:], _call(renoise, 20, seeds=seeds[3:]))


def test_padding_behind_a_row_changes_nothing(renoise):
    eligible = torch.arange(100)[None] < 64
    assert torch.equal(_call(renoise, 20, R=100, eligible=eligible)[:, :64], _call(renoise, 20))


def test_step_and_purpose_give_other_draws(renoise):
    draws = [_call(renoise, 20), _call(renoise, 20, step=1), _call(renoise, 20, purpose=RETAIN)]
    assert not any(torch.equal(draws[i], draws[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


def test_wrong_arguments_are_named(renoise):
    with pytest.raises(ValueError, match=r"renoise: weight is .*float64.*, expected .*float32"):
        _call(renoise, 1, weight=torch.ones(1, 64, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"renoise: eligible is \(1, 63\).*, expected \(1, 64\)"):
        _call(renoise, 1, eligible=torch.ones(1, 63, dtype=torch.bool))
