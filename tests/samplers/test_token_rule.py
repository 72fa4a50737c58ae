"""The tables of a batch's token rules, and the constants shared with the random numbers."""

from __future__ import annotations

import math

import pytest

from lad_engine.config import SamplingParams
from lad_engine.kernels.random import reference as philox
from lad_engine.samplers import purposes
from lad_engine.samplers.token_rule import build_token_rule


def rule_of(*settings, mask_id=3, eos_ids=(5, 6)):
    return build_token_rule([SamplingParams(**one) for one in settings], mask_id, eos_ids, "cpu")


def bias_of(rule, row):
    return {token: value for token, value in zip(rule.bias_ids.tolist(), rule.bias_values[row].tolist(), strict=True) if value}


def test_purposes_are_those_of_the_random_op():
    for name in (name for name in vars(purposes) if name.isupper()):
        assert getattr(purposes, name) == getattr(philox, name)


def test_biases_of_a_mixed_batch_stay_with_their_rows():
    rule = rule_of({}, {"eos_bias": 2.0, "suppress_tokens": (9, 5)}, {"eos_treatment": "forbid", "eos_bias": -1.0}, {"eos_bias": 2.0})
    assert rule.bias_ids.tolist() == [3, 5, 6, 9]
    assert bias_of(rule, 0) == {3: -math.inf}
    assert bias_of(rule, 1) == {3: -math.inf, 5: -math.inf, 9: -math.inf}
    assert bias_of(rule, 2) == {3: -math.inf, 5: -math.inf, 6: -math.inf}
    assert bias_of(rule, 3) == {3: -math.inf, 5: -2.0}


@pytest.mark.parametrize(
    "settings,max_top_k,samples_all",
    [
        ([{"top_k": 1}], 1, False),
        ([{"top_k": 3}, {"top_k": 50}], 50, False),
        ([{"top_k": 0}], 1, True),
        ([{"top_k": 0}, {"top_k": 7}], 7, True),
        ([{"top_k": 0, "top_p": 0.9}], 0, False),
        ([{"top_k": 0, "top_p": 0.9}, {"top_k": 0}], 0, True),
        ([{"top_k": 40, "temperature": 0.0}], 1, False),
        ([{"top_k": 40, "temperature": 0.0, "confidence": "kept"}], 40, False),
        ([{"top_k": 0, "temperature": 0.0, "confidence": "kept"}], 1, False),
    ],
)
def test_only_the_candidates_somebody_needs_are_sorted(settings, max_top_k, samples_all):
    rule = rule_of(*settings)
    assert (rule.max_top_k, rule.samples_all) == (max_top_k, samples_all)
