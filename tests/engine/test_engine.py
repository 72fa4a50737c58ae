"""The engine from prompt to answer on a tiny real checkpoint: batches, streams, adapters, settings, refusals."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path

import pytest
import torch

from lad_engine import Engine, GenerationResult, Prompt, StepEvent
from lad_engine.errors import AdapterError, ConfigError, RequestError
from tiny_adapter import write_adapter
from tiny_checkpoint import MASK_PIECE, make_tiny

PROMPTS = ["the user is there", "an answer", "the sea and the sun are on the way in"]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    make_tiny(folder, family="llama", tie=True)
    return folder


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory) -> Path:
    return write_adapter(base, tmp_path_factory.mktemp("adapter") / "adapter.safetensors", predicts_next_token=True)


@pytest.fixture(scope="module")
def engine(base: Path, adapter: Path) -> Engine:
    return Engine.load(base, adapter=adapter)


def requests(engine: Engine):
    """Requests that share nothing: lengths, steps, seeds, filters, policies."""
    return [
        engine.sampling("paper", max_new_tokens=7, steps=4, seed=3, top_k=5, temperature=0.8),
        engine.sampling("space", max_new_tokens=12, steps=6, seed=4, top_p=0.9, eos_bias=1.0),
        engine.sampling("retain", max_new_tokens=5, steps=3, seed=5),
        engine.sampling("llada", max_new_tokens=8, steps=8, block_length=4, seed=6),
        engine.sampling("paper", max_new_tokens=9, steps=5, tokens_per_step=3, remasking="weighted", cfg_scale=0.5, seed=7, top_k=3),
    ]


def test_a_request_gets_the_same_answer_alone_and_in_any_batch(engine: Engine):
    params = requests(engine)
    prompts = [PROMPTS[i % 3] for i in range(len(params))]
    together = engine.generate(prompts, params)
    reversed_batch = engine.generate(prompts[::-1], params[::-1])[::-1]
    for prompt, one, first, second in zip(prompts, params, together, reversed_batch, strict=True):
        alone = engine.generate(prompt, one)[0]
        assert alone.token_ids == first.token_ids == second.token_ids
        assert alone.confidences == first.confidences == second.confidences
        assert (alone.nfe, alone.step_map) == (first.nfe, first.step_map)


def test_seeds_decide_the_draws(engine: Engine):
    params = engine.sampling("paper", max_new_tokens=16, steps=4, top_k=0, seed=1)
    first, again, other = (engine.generate(PROMPTS[0], params.replace(seed=seed))[0].token_ids for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_a_stream_ends_with_the_result_generate_gives(engine: Engine):
    params = engine.sampling("paper", max_new_tokens=6, steps=4, early_stop=False)
    items = list(engine.stream(PROMPTS[:2], params))
    events = [item for item in items if isinstance(item, StepEvent)]
    results = [item for item in items if isinstance(item, GenerationResult)]
    assert [(event.index, event.step) for event in events] == [(index, step) for step in range(4) for index in range(2)]
    assert [event.is_last for event in events] == [False] * 6 + [True] * 2
    plain = engine.generate(PROMPTS[:2], params)
    for index, (streamed, result) in enumerate(zip(results, plain, strict=True)):
        assert streamed.token_ids == result.token_ids == events[6 + index].token_ids
        assert engine.mask_id not in result.token_ids
        assert streamed.text == events[6 + index].text


def test_a_stream_leaves_its_caller_out_of_inference_mode(engine: Engine):
    for _ in engine.stream(PROMPTS[0], engine.sampling("paper", max_new_tokens=4, steps=2)):
        assert not torch.is_inference_mode_enabled()


def test_time_the_caller_takes_between_events_is_not_counted(engine: Engine):
    began = time.perf_counter()
    for item in engine.stream(PROMPTS[0], engine.sampling("paper", max_new_tokens=4, steps=2, early_stop=False)):
        if isinstance(item, StepEvent):
            time.sleep(0.2)
    assert item.timings["total_ms"] < (time.perf_counter() - began) * 1e3 - 390


def test_a_tokenizer_with_more_tokens_than_the_base_is_refused_not_a_crash(engine: Engine, monkeypatch):
    monkeypatch.setattr(engine, "facts", dataclasses.replace(engine.facts, vocab_size=40))
    with pytest.raises(RequestError, match="beyond the base's vocabulary, expected less than 40"):
        engine.generate(PROMPTS[0], engine.sampling("paper", max_new_tokens=4, steps=2))


def test_a_draft_that_would_be_hidden_whole_is_refused(engine: Engine):
    for prompt in (Prompt(PROMPTS[0], draft="the sun"), Prompt(PROMPTS[0], infill="the [[3:sea]] is")):
        with pytest.raises(RequestError, match="noise_start is 1"):
            engine.generate(prompt, engine.sampling("paper", max_new_tokens=8, steps=2))
        assert engine.generate(prompt, engine.sampling("paper", max_new_tokens=8, steps=2, noise_start=0.5))[0].text


def test_results_say_how_they_were_made(engine: Engine):
    result = engine.generate(PROMPTS[0], engine.sampling("paper", max_new_tokens=6, steps=3, seed=9, early_stop=False))[0]
    assert (result.nfe, result.steps, result.seed, result.profile, result.adapter) == (3, 3, 9, "paper", "tiny")
    assert (result.dtype, result.device) == (engine.config.dtype, "cpu")
    assert len(result.token_ids) == len(result.confidences) == len(result.step_map) == 6
    assert 0 < result.timings["first_step_ms"] <= result.timings["total_ms"]
    assert set(result.ops) >= {"attention", "choose_token", "renoise"}


def test_merged_and_unmerged_adapters_give_the_same_tokens_in_fp32(base: Path, adapter: Path, engine: Engine):
    beside = Engine.load(base, adapter=adapter, dtype="float32", merge=False)
    params = engine.sampling("paper", max_new_tokens=12, steps=4)
    merged = Engine.load(base, adapter=adapter, dtype="float32").generate(PROMPTS, params)
    assert [r.token_ids for r in beside.generate(PROMPTS, params)] == [r.token_ids for r in merged]


def test_the_shift_is_a_fact_of_the_adapter(base: Path, engine: Engine, tmp_path):
    same_position = Engine.load(base, adapter=write_adapter(base, tmp_path / "same.safetensors", predicts_next_token=False))
    params = engine.sampling("paper", max_new_tokens=12, steps=1)
    assert engine.model.head.predicts_next_token and not same_position.model.head.predicts_next_token
    assert same_position.generate(PROMPTS[0], params)[0].token_ids != engine.generate(PROMPTS[0], params)[0].token_ids


def test_fixed_words_of_an_infill_stay_where_they_are(engine: Engine):
    result = engine.generate(Prompt(text=PROMPTS[0], infill="the [[3]] is [[2]]."), engine.sampling("paper", steps=5))[0]
    fixed = [i for i, (first, _) in enumerate(result.step_map) if first < 0]
    the, is_, dot = engine.codec.encode("the "), engine.codec.encode(" is "), engine.codec.encode(".")
    assert [result.token_ids[i] for i in fixed] == [*the, *is_, *dot, 2]
    assert len(result.token_ids) == len(fixed) + 5


def test_drift_is_measured_on_a_clean_base_and_saved_beside_the_adapter(engine: Engine, adapter: Path):
    before = engine.generate(PROMPTS[0], engine.sampling("paper", max_new_tokens=4, steps=2))[0].token_ids
    report = engine.drift()
    assert report.token_agreement == 1.0
    assert report.max_logit_difference < 1e-3
    assert json.loads(adapter.with_suffix(".drift.json").read_text())["token_agreement"] == 1.0
    assert engine.generate(PROMPTS[0], engine.sampling("paper", max_new_tokens=4, steps=2))[0].token_ids == before


def test_a_base_without_an_adapter_needs_a_one_piece_mask(base: Path):
    plain = Engine.load(base, adapter=None)
    assert plain.adapter_facts is None
    assert plain.generate(PROMPTS[0], plain.sampling(max_new_tokens=4, steps=2))[0].adapter is None
    with pytest.raises(AdapterError, match="HOLE"):
        Engine.load(base, adapter=None, mask_token="HOLE")
    with pytest.raises(ConfigError, match="no adapter"):
        plain.drift()


def test_a_mask_token_beside_an_adapter_that_names_another_is_refused(base: Path, adapter: Path):
    with pytest.raises(ConfigError, match=f"mask_token is 'the', but tiny was trained with '{MASK_PIECE}'"):
        Engine.load(base, adapter=adapter, mask_token="the")


def test_an_adapter_with_an_unknown_profile_decodes_with_a_named_one(base: Path, tmp_path):
    engine = Engine.load(base, adapter=write_adapter(base, tmp_path / "odd.safetensors", profile="papr"))
    with pytest.raises(ConfigError, match=r"tiny: its profile is 'papr', expected one of default, paper, .* Give one"):
        engine.sampling()
    assert engine.sampling("space").profile == "space"


def test_the_default_adapter_on_another_base_says_what_to_give_instead(base: Path, tmp_path, monkeypatch):
    foreign = write_adapter(base, tmp_path / "other.safetensors", base_fingerprint="0" * 64)
    monkeypatch.setattr("lad_engine.engine._default_adapter", lambda: foreign)
    with pytest.raises(AdapterError, match=r"fingerprint .* --adapter none"):
        Engine.load(base)


def test_an_adapter_of_another_base_is_refused(adapter: Path, tmp_path):
    make_tiny(tmp_path, family="llama", tie=True, seed=1)
    with pytest.raises(AdapterError, match="fingerprint"):
        Engine.load(tmp_path, adapter=adapter)
    assert Engine.load(tmp_path, adapter=adapter, any_base=True).adapter_facts.name == "tiny"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"device": "tpu"}, "device is 'tpu'"),
        ({"dtype": "int3"}, "dtype is 'int3'"),
        ({"threads": 0}, "threads is 0"),
        ({"nope": 1}, "nope is not"),
    ],
)
def test_engine_settings_are_checked(base: Path, settings: dict, sentence: str):
    with pytest.raises(ConfigError, match=sentence):
        Engine.load(base, adapter=None, **settings)


def test_prompts_and_params_must_fit_each_other(engine: Engine):
    with pytest.raises(RequestError, match="the list is empty"):
        engine.generate([])
    with pytest.raises(ConfigError, match="2 given for 3 prompts"):
        engine.generate(PROMPTS, [engine.sampling()] * 2)
    with pytest.raises(ConfigError, match="id 99999 is given, expected 0 to 319"):
        engine.generate(PROMPTS[0], engine.sampling(suppress_tokens=(99999,)))
    with pytest.raises(RequestError, match="expected at most 512"):
        engine.generate(PROMPTS[0], engine.sampling(max_new_tokens=5000))


def test_without_batch_invariance_only_near_ties_may_flip(base: Path, adapter: Path, engine: Engine):
    padded = Engine.load(base, adapter=adapter, batch_invariant=False)
    params = engine.sampling("paper", max_new_tokens=12, steps=1)
    pairs = zip(padded.generate(PROMPTS, params), engine.generate(PROMPTS, params), strict=True)
    flips = [mine != theirs for a, b in pairs for mine, theirs in zip(a.token_ids, b.token_ids, strict=True)]
    assert len(flips) == 36
    assert sum(flips) <= 1
