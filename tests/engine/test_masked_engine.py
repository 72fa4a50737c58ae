"""Masked checkpoints from prompt to answer: every layout, batches, drivers, infills, scores, and settings that belong to others."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_families import FAMILIES, MASK_ID, make_family

from lad_engine import Engine, Prompt, StepEvent
from lad_engine.errors import ConfigError, RequestError
from lad_engine.model.likelihood import score_text
from tiny_checkpoint import make_tiny

PROMPTS = ["the user is there", "an answer", "the sea and the sun are on the way in"]
OWN_PROFILES = {"diffugpt": "diffugpt", "diffullama": "diffullama", "llada": "llada_masked", "dream": "dream"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("masked")
    return {name: make_family(root / name, name) for name in FAMILIES}


@pytest.fixture(scope="module")
def engines(folders):
    return {name: Engine.load(folder, device="cpu") for name, folder in folders.items()}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_layout_decodes_with_its_own_profile(engines, name):
    engine = engines[name]
    assert engine.family == "masked" and engine.adapter_facts is None and engine.mask_id == MASK_ID
    params = engine.sampling(max_new_tokens=20, steps=6)
    assert params.profile == OWN_PROFILES[name]
    result = engine.generate(PROMPTS[0], params)[0]
    assert len(result.token_ids) == 20 and MASK_ID not in result.token_ids and result.nfe <= 6


def test_a_checkpoint_with_a_mask_of_its_own_decodes_where_nobody_names_one(folders):
    engine = Engine.load(folders["dream"], adapter=None, mask_token=None, device="cpu")
    assert engine.mask_id == MASK_ID
    assert len(engine.generate(PROMPTS[0], engine.sampling(max_new_tokens=4, steps=2))[0].token_ids) == 4


@pytest.mark.parametrize("name", FAMILIES)
def test_a_request_gets_the_same_answer_alone_in_any_batch_and_by_any_driver(engines, folders, name):
    engine = engines[name]
    rules = [{"reveal": rule} for rule in ("random", "confidence", "topk_margin", "transfer", "origin")]
    if name == "llada":
        rules = [{"block_length": 8}, {"threshold": 0.1}, {"factor": 3.0}, {"selection": "random"}, {"cfg_scale": 0.5}]
    params = [engine.sampling(**rule, max_new_tokens=9 + 2 * i, steps=5 + i, seed=i) for i, rule in enumerate(rules)]
    prompts = [PROMPTS[i % 3] for i in range(5)]
    together = engine.generate(prompts, params)
    back = engine.generate(prompts[::-1], params[::-1])[::-1]
    for prompt, one, first, second in zip(prompts, params, together, back, strict=True):
        alone = engine.generate(prompt, one)[0]
        assert alone.token_ids == first.token_ids == second.token_ids
        assert (alone.confidences, alone.nfe, alone.step_map) == (first.confidences, first.nfe, first.step_map)
    for driver in ("replay", "loop"):
        captured = Engine.load(folders[name], device="cpu", driver=driver)
        assert [one.token_ids for one in captured.generate(prompts, params)] == [one.token_ids for one in together]


def test_a_stream_shows_every_reveal_once(engines):
    engine = engines["diffugpt"]
    events = [item for item in engine.stream(PROMPTS[0], engine.sampling(max_new_tokens=16, steps=8)) if isinstance(item, StepEvent)]
    assert [event.step for event in events] == list(range(len(events))) and events[-1].is_last
    assert sum(event.status.count("new") for event in events) == 16
    assert all(set(event.status) <= {"masked", "new", "settled"} for event in events)


def test_any_pattern_is_infilled_and_given_words_stay(engines):
    engine = engines["diffullama"]
    result = engine.generate(Prompt(infill="[[3]]the user[[4]] is[[2]]"), engine.sampling(steps=4))[0]
    fixed = [index for index, (first, _) in enumerate(result.step_map) if first < 0]
    words = engine.codec.encode_continuation("the user"), engine.codec.encode_continuation(" is")
    assert [result.token_ids[i] for i in fixed] == [*words[0], *words[1]]
    assert len(result.token_ids) == 9 + len(fixed)


def test_nothing_but_gaps_is_unconditional_generation_behind_a_bos(engines):
    engine = engines["diffugpt"]
    canvases, _ = engine._batch(Prompt(infill="[[32]]"), engine.sampling())
    assert canvases[0].ids[0] == engine.codec.bos_id and canvases[0].answer_start == 1
    texts = {engine.generate(Prompt(infill="[[32]]"), engine.sampling(steps=8, seed=seed))[0].token_ids for seed in range(3)}
    assert len(texts) == 3


def test_a_draft_has_nothing_to_reveal(engines):
    with pytest.raises(RequestError, match="no position is hidden"):
        engines["dream"].generate(Prompt("a", draft="the user"), engines["dream"].sampling(max_new_tokens=8))


@pytest.mark.parametrize("name", ["remasking", "noise_start", "retention", "tokens_per_step", "noise_schedule", "eos_split"])
def test_settings_of_lad_are_refused_by_name(engines, name):
    value = {"remasking": "none", "noise_start": 0.5, "retention": "locked", "tokens_per_step": 2, "noise_schedule": "linear"}.get(
        name, True
    )
    with pytest.raises(ConfigError, match=f"{name} is given, but this checkpoint decodes as masked, which does not read it .*lad"):
        engines["dream"].sampling(**{name: value})


def test_masked_settings_are_refused_by_name_on_a_lad_base(tmp_path):
    engine = Engine.load(make_tiny(tmp_path), adapter=None, device="cpu")
    assert engine.family == "lad"
    with pytest.raises(ConfigError, match="factor is given, but this checkpoint decodes as lad"):
        engine.sampling(factor=0.9)
    with pytest.raises(ConfigError, match="reveal is given, but this checkpoint decodes as lad"):
        engine.generate("a", engine.sampling().replace(reveal="entropy"))
    with pytest.raises(ConfigError, match="score: this engine decodes as lad, expected masked"):
        engine.score("a", "b")


def test_a_lad_profile_is_refused_on_a_masked_checkpoint(engines):
    with pytest.raises(ConfigError, match="does not read it"):
        engines["dream"].generate("a", engines["dream"].sampling("retain"))


def test_the_score_is_the_plain_mean_over_masked_copies(engines):
    engine = engines["diffullama"]
    front, tail = [1, *engine.codec.encode("the user")], engine.codec.encode_continuation(" is there")
    got = engine.score("the user", " is there", copies=6, seed=4)
    ids, N = torch.tensor(front + tail), len(front) + len(tail)
    losses, bounds, rows = [], [], 0
    for copy in range(6):
        draws = engine.ops.uniform(torch.tensor([4]), torch.arange(N), torch.tensor(copy), 5)[0]
        hidden = [i for i in range(len(front), N) if float(draws[i]) < (copy + 1) / 6]
        noised = ids.clone()
        noised[hidden] = engine.mask_id
        with torch.inference_mode():
            logits = engine.model.head.logits(engine.model.hidden(noised[None])[0])
        each = [-float(logits[i - 1].double().log_softmax(0)[ids[i]]) for i in hidden]
        losses.append(sum(each) / max(len(each), 1))
        bounds.append(sum(each) * 6 / (copy + 1))
        rows += len(hidden)
    assert math.isclose(got.mean_loss, sum(losses) / 6, rel_tol=1e-4)
    assert math.isclose(got.bound, sum(bounds) / 6, rel_tol=1e-4)
    assert (got.tokens, got.rows) == (len(tail), rows)


def test_scores_refuse_what_nothing_predicts(engines):
    engine = engines["dream"]
    with pytest.raises(RequestError, match="no row of a shifted model predicts it"):
        score_text(engine.model, [5, 6], [True, True], MASK_ID, uniform=engine.ops.uniform)
    with pytest.raises(RequestError, match="0 of 2 tokens are scored"):
        score_text(engine.model, [5, 6], [False, False], MASK_ID, uniform=engine.ops.uniform)
    with pytest.raises(RequestError, match="0 of continuation"):
        engine.score("a", "")


def test_a_prompt_without_a_template_continues_plain_text(engines):
    canvases, _ = engines["diffugpt"]._batch("the user", engines["diffugpt"].sampling(max_new_tokens=4))
    assert canvases[0].ids[:-4].tolist() == [1, *engines["diffugpt"].codec.encode("the user")]
