"""The named profiles: each is a valid set of SamplingParams that says what it means, and decodes to an end."""

from __future__ import annotations

import pytest
from stub_model import EOS, MASK, OPS, StubModel, canvas

from lad_engine.denoisers.lad import LadDenoiser
from lad_engine.errors import ConfigError
from lad_engine.profiles import load_profile, profile_meanings, profile_names, profile_params
from lad_engine.runtime.runner import run


def test_the_four_families_are_there_and_documented():
    assert {"paper", "space", "retain", "llada"} <= set(profile_names())
    assert all(len(meaning) > 80 for meaning in profile_meanings().values())


@pytest.mark.parametrize("name", profile_names())
def test_a_profile_decodes_to_an_answer_without_masks(name):
    params = profile_params(name, {"num_steps": 8})
    assert (params.profile, params.steps) == (name, 8)
    denoiser = LadDenoiser(StubModel(), OPS)
    state = denoiser.begin([canvas()], [params], mask_id=MASK, eos_ids=(EOS,), device="cpu")
    run(denoiser, state)
    assert not (state.answer == MASK).any()


def test_profiles_hold_the_values_of_the_specification():
    paper, space, retain, llada = (load_profile(name) for name in ("paper", "space", "retain", "llada"))
    assert (paper["steps"], paper["noise_start"], paper["top_k"], paper["remasking"]) == (16, 1.0, 1, "random")
    assert (space["steps"], space["noise_start"], space["top_k"], space["noise_clip"]) == (64, 0.5, 3, 0.01)
    assert (space["top_p_rule"], space["remasking"]) == ("drop_crossing", "clusters")
    assert (retain["noise_schedule"], retain["retention"]) == ("linear", "locked")
    assert (llada["remasking"], llada["temperature"]) == ("transfer", 0.0)


def test_an_unknown_profile_names_the_close_one():
    with pytest.raises(ConfigError, match="Did you mean space"):
        load_profile("spaces")


def test_a_loaded_profile_is_a_copy():
    load_profile("paper")["steps"] = 1
    assert load_profile("paper")["steps"] == 16


def test_what_a_profile_says_for_a_replaced_rule_gives_way():
    params = profile_params("retain", {"retention": "none", "remasking": "random"})
    assert (params.remasking, params.eos_treatment, params.noise_schedule) == ("random", "none", "linear")
    assert profile_params("retain", {"retention": "none"}).eos_treatment == "low_confidence"
    assert profile_params("retain", {"retention": "none", "remasking": "none"}).noise_schedule == "exponential"
    with pytest.raises(ConfigError, match="eos_treatment is 'low_confidence', expected it only with retention or"):
        profile_params("retain", {"retention": "none", "remasking": "random", "eos_treatment": "low_confidence"})


def test_blocks_of_a_profile_give_way_to_another_rule():
    assert profile_params("default", {"steps": 3}).block_length == 1
    assert profile_params("default", {"remasking": "random"}).block_length is None
