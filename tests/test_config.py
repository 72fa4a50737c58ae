"""Sampling parameters: values, names, and combinations in which one of them would do nothing."""

from __future__ import annotations

import dataclasses

import pytest

from lad_engine.config import ALIASES, CHOICES, LEAST, MOST, RANGES, READ_WITH, EngineConfig, SamplingParams
from lad_engine.errors import ConfigError


def test_every_field_has_a_check():
    free = {"suppress_tokens", "stop", "profile"}
    flags = {field.name for field in dataclasses.fields(SamplingParams) if field.type == "bool"}
    assert {*CHOICES, *LEAST, *RANGES, *free, *flags} == {field.name for field in dataclasses.fields(SamplingParams)}
    assert set(MOST) == set(LEAST)
    assert set(READ_WITH) < {*CHOICES, *LEAST, *RANGES, *flags}
    assert set(ALIASES.values()) <= set(LEAST) | set(RANGES)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"steps": -1}, "steps is -1, expected an integer of at least 1."),
        ({"steps": 2.5}, "steps is 2.5, expected an integer"),
        ({"steps": None}, "steps is None, expected an integer"),
        ({"seed": 2**63}, "expected an integer below"),
        ({"steps": 10**12}, "steps is 1000000000000, expected an integer of at most 65536"),
        ({"top_k": 10**20}, "top_k is 100000000000000000000, expected an integer of at most 2147483647"),
        ({"reward_scale": 1.0, "reward_steps": 10**9}, "reward_steps is 1000000000, expected an integer of at most 1000"),
        ({"top_p": 1.5}, "top_p is 1.5, expected a number from 0 to 1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"remasking": "some"}, "remasking is 'some', expected one of none, random"),
        ({"early_stop": "no"}, "early_stop is 'no', expected true or false"),
        ({"suppress_tokens": ("the",)}, "suppress_tokens: an id is 'the', expected an integer of at least 0"),
        ({"suppress_tokens": (-1,)}, "suppress_tokens: an id is -1"),
        ({"stop": ("",)}, "expected texts that are not empty"),
        ({"stepz": 3}, "stepz is not a sampling parameter; did you mean steps"),
        ({"steps": 3, "num_steps": 4}, "steps is given twice"),
    ],
)
def test_a_value_that_cannot_hold_is_refused(settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        SamplingParams.from_mapping(settings)


@pytest.mark.parametrize(
    ("settings", "missing"),
    [
        ({"block_length": 4}, {"remasking": "transfer"}),
        ({"noise_schedule": "linear", "remasking": "none"}, {"remasking": "bernoulli"}),
        ({"noise_sharpness": 2.0, "noise_schedule": "linear"}, {"noise_schedule": "exponential"}),
        ({"noise_sharpness": 2.0, "remasking": "transfer"}, {"remasking": "clusters"}),
        ({"noise_clip": 0.5}, {"remasking": "weighted"}),
        ({"cluster_size": 0.5}, {"remasking": "clusters"}),
        ({"permanent_unmask": True, "remasking": "none"}, {"remasking": "random"}),
        ({"selection": "random"}, {"retention": "editable"}),
        ({"eos_split": True, "remasking": "clusters"}, {"remasking": "weighted"}),
        ({"eos_treatment": "low_confidence"}, {"eos_treatment": "forbid"}),
        ({"eos_treatment": "low_confidence"}, {"retention": "locked"}),
    ],
)
def test_a_setting_that_nothing_reads_is_refused_until_something_does(settings, missing):
    with pytest.raises(ConfigError, match=f"^{next(iter(settings))} is .*, expected it only with"):
        SamplingParams(**settings)
    assert SamplingParams(**{**settings, **missing}).max_new_tokens == 64


def test_one_stop_text_or_token_stands_for_a_tuple_of_it():
    params = SamplingParams(stop="end", suppress_tokens=7)
    assert (params.stop, params.suppress_tokens) == (("end",), (7,))
    assert SamplingParams(stop=["a", "b"]).stop == ("a", "b")


def test_rules_that_exclude_each_other_are_refused():
    with pytest.raises(ConfigError, match="commits tokens for good"):
        SamplingParams(remasking="transfer", retention="locked")
    with pytest.raises(ConfigError, match="or retention to none"):
        SamplingParams(remasking="weighted", retention="locked")


@pytest.mark.parametrize("threads", [-1, 0, 10**20])
def test_threads_that_no_machine_has_are_refused(threads):
    with pytest.raises(ConfigError, match=f"threads is {threads}, expected 1 to 1024"):
        EngineConfig(threads=threads)
