"""The authors' parameter names mean here what they mean there."""

import pytest
from fake_engine import FakeEngine

from lad_engine.compat import SPACE_ONLY, authors_params, denoise, denoise_stream, generate_answer
from lad_engine.config import SamplingParams
from lad_engine.errors import ConfigError, RequestError


def changed(params):
    """Return the fields that differ from the plain defaults."""
    plain = SamplingParams()
    return {name: getattr(params, name) for name in vars(plain) if getattr(params, name) != getattr(plain, name)}


def test_the_rewrites_defaults_are_independent_remasking_on_a_linear_schedule():
    params = authors_params({"max_new_tokens": 32, "num_steps": 8, "noise_level": 0.4, "temperature": 0.5, "top_k": 5, "seed": 9})
    assert changed(params) == {
        "max_new_tokens": 32, "steps": 8, "noise_start": 0.4, "temperature": 0.5, "top_k": 5, "seed": 9, "noise_schedule": "linear",
        "remasking": "bernoulli", "confidence": "kept", "early_stop": False,
    }  # fmt: skip
    assert authors_params({"num_inference_steps": 3, "top_k": 0}) == authors_params({"num_steps": 3, "top_k": 1})


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"confidence_guided": True}, {"remasking": "confidence"}),
        ({"permanent_unmask": True}, {"retention": "locked", "selection": "random", "eos_split": True}),
        (
            {"permanent_unmask": True, "confidence_guided": True, "freeze_retained_tokens": False, "proportional_unmask": False},
            {"retention": "editable"},
        ),
        ({"early_stopping": True, "confidence_eos_eot_inf": True}, {"early_stop": True, "eos_treatment": "low_confidence"}),
    ],
)
def test_retention_and_remasking_of_the_rewrite(settings, expected):
    params = authors_params(settings)
    assert {name: getattr(params, name) for name in expected} == expected
    if settings.get("permanent_unmask"):
        assert params.remasking == "random" and params.selection == ("confidence" if "confidence_guided" in settings else "random")


def test_the_spaces_defaults_are_those_of_its_sliders():
    params = authors_params({"sharpness": 1.0}, lambda: 56)
    assert changed(params) == {
        "max_new_tokens": 200, "steps": 64, "top_k": 3, "top_p_rule": "drop_crossing", "confidence": "kept", "noise_start": 0.5,
        "remasking": "clusters",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"use_confidence_noising": True, "noise_clipping": 0.2}, {"remasking": "weighted", "noise_clip": 0.2, "eos_split": True}),
        ({"use_permanent_unmasking": True}, {"remasking": "random", "permanent_unmask": True, "eos_split": False}),
        (
            {"sharpness": 2.0, "confidence_guided": True, "permanent_unmask": True},
            {"noise_sharpness": 2.0, "remasking": "weighted", "permanent_unmask": True},
        ),
        ({"clustering": 0.5}, {"remasking": "clusters", "cluster_size": 0.5}),
        ({"clustering": 0.5, "permanent_unmask": True, "noise_clipping": 0.2}, {"cluster_size": 0.0, "noise_clip": 0.01}),
        ({"eos_bias": 2.0}, {"eos_bias": 2.0}),
        ({"eos_boost": 2.0}, {"eos_bias": -2.0}),
        ({"added_tokens": 4}, {"tokens_per_step": 4}),
        ({"add_tokens": 246}, {"tokens_per_step": None}),
        ({"context_window": 128}, {"max_new_tokens": 118}),
        ({"max_length": 128, "max_new_tokens": 7}, {"max_new_tokens": 7}),
        ({"noise_start": 0.2, "num_steps": 5, "noising_sharpness": 5.0}, {"noise_start": 0.2, "steps": 5, "noise_sharpness": 5.0}),
        ({"pause_length": 0.5, "top_p": 0.1}, {"top_p": 0.1, "steps": 64}),
    ],
)
def test_the_spaces_names(settings, expected):
    params = authors_params(settings, lambda: 10)
    assert {name: getattr(params, name) for name in expected} == expected


def test_the_spaces_own_names_choose_its_dialect():
    assert {"noise_start", "sharpness", "clustering", "added_tokens", "context_window", "eos_boost", "top_p", "eos_bias"} <= SPACE_ONLY
    assert not {"noise_level", "num_steps", "top_k", "permanent_unmask", "max_new_tokens", "seed", "early_stopping"} & SPACE_ONLY


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sharpnes": 1.0}, "sharpnes is not a name of the authors' samplers. Did you mean sharpness"),
        ({"noise_start": 0.5, "noise_level": 0.5}, "noise_level belongs to the other dialect"),
        ({"num_steps": 4, "num_inference_steps": 4}, "num_steps is given twice"),
        ({"eos_bias": 1.0, "eos_boost": -1.0}, "eos_bias and eos_boost are both given"),
        ({"repetition_penalty": 1.2}, "repetition_penalty is 1.2, expected 1.0: the engine has no such rule"),
        ({"block_length": 8}, "block_length is 8, expected None"),
        ({"num_steps": 0}, "steps is 0"),
    ],
)
def test_what_cannot_be_meant_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        authors_params(settings)


def test_a_window_full_of_prompt_is_refused():
    with pytest.raises(RequestError, match="context_window is 128, expected more than the 130 prompt tokens"):
        authors_params({"context_window": 128}, lambda: 130)


def test_denoise_returns_text_and_status_and_reports_progress():
    engine, seen = FakeEngine(), []
    text, status = denoise(engine, "What?", "Be brief.", num_steps=3, progress=lambda share, status: seen.append((share, status)))
    assert text == "The capital is Paris"
    assert status.startswith("Denoising step 3/3 · 4 output tokens")
    assert [round(share, 2) for share, _ in seen] == [0.33, 0.67, 1.0] and seen[-1][1] == status
    assert engine.batches[0][0].system == "Be brief." and engine.params.noise_schedule == "linear"


def test_positional_arguments_have_the_authors_order():
    engine = FakeEngine()
    denoise(engine, "What?", "Be brief.", 32, 8, 0.4, 0.5, 5, 9, True, True, False, True)
    assert engine.params == authors_params(
        {"max_new_tokens": 32, "num_steps": 8, "noise_level": 0.4, "temperature": 0.5, "top_k": 5, "seed": 9, "permanent_unmask": True}
        | {"confidence_guided": True, "proportional_unmask": False, "early_stopping": True}
    )
    with pytest.raises(ConfigError, match="num_steps is given twice"):
        denoise(engine, "What?", None, 32, 8, num_steps=8)
    with pytest.raises(ConfigError, match="14 positional arguments are given, expected at most 13"):
        list(denoise_stream(engine, "What?", None, *[1] * 11))


def test_denoise_stream_yields_every_state_as_text_status_and_html():
    states = list(denoise_stream(FakeEngine(), "What?", noise_level=0.5))
    assert len(states) == 3
    assert "mask</span>" not in states[2][2] and "Paris</span>" in states[2][2] and "mask" in states[0][2]
    assert [text for text, _, _ in states] == ["The is", "The capital is", "The capital is Paris"]


def test_generate_answer_has_the_defaults_of_lad_code():
    engine = FakeEngine()
    assert generate_answer("What is it?", engine, None, max_it=4, eos_token_id=1) == "The capital is Paris"
    params = engine.params
    assert (params.steps, params.noise_sharpness, params.top_k, params.noise_start) == (4, 5.0, 100, 0.5)
    assert params.max_new_tokens == 256 - 4
    with pytest.raises(ConfigError, match="eos_token_id is 5"):
        generate_answer("What?", engine, eos_token_id=5)
