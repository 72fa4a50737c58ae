"""The baseline through the engine: results, stop words, refusals, and transformers' own greedy answer on the default base."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from lad_engine import Engine, Prompt, SamplingParams
from lad_engine.config import AUTOREGRESSIVE_DEFAULTS
from lad_engine.errors import ConfigError, RequestError
from tiny_checkpoint import make_tiny

PROMPTS = ["the user is there", "an answer", "the sea and the sun are on the way in"]


@pytest.fixture(scope="module")
def engine(tmp_path_factory) -> Engine:
    return Engine.load(make_tiny(tmp_path_factory.mktemp("base"), family="llama", tie=True), adapter=None, mask_token=None)


def params(**settings) -> SamplingParams:
    return SamplingParams(**{**AUTOREGRESSIVE_DEFAULTS, "max_new_tokens": 8, **settings})


def test_a_result_says_what_was_made_and_by_how_many_passes(engine: Engine):
    result = engine.generate_autoregressive(PROMPTS[0], params(seed=5))[0]
    assert len(result.token_ids) == len(result.confidences) == result.nfe == result.steps
    assert result.step_map == tuple((step, step) for step in range(result.nfe))
    assert result.text == engine.codec.decode([token for token in result.token_ids if token not in engine.eos_ids]).lstrip()
    assert result.tpf == (result.nfe - (result.finish_reason == "eos")) / result.nfe
    assert (result.adapter, result.profile, result.seed) == (None, "autoregressive", 5)
    assert 0 < result.timings["first_step_ms"] <= result.timings["total_ms"]


def test_a_batch_gives_each_prompt_the_answer_it_has_alone(engine: Engine):
    each = [params(), params(max_new_tokens=4, seed=3, temperature=0.9), params(max_new_tokens=11, seed=4, temperature=0.9, top_k=5)]
    together = engine.generate_autoregressive(PROMPTS, each)
    alone = [engine.generate_autoregressive(prompt, one)[0] for prompt, one in zip(PROMPTS, each, strict=True)]
    assert [result.token_ids for result in together] == [result.token_ids for result in alone]
    assert [result.confidences for result in together] == [result.confidences for result in alone]


def test_nothing_given_is_greedy(engine: Engine):
    default, greedy = (engine.generate_autoregressive(PROMPTS[0], one)[0] for one in (None, params(max_new_tokens=64)))
    assert default.token_ids == greedy.token_ids


def test_a_stop_word_ends_the_work_and_the_text(engine: Engine):
    whole = engine.generate_autoregressive(PROMPTS[1], params(max_new_tokens=30))[0]
    word = engine.codec.decode(list(whole.token_ids[3:5]))
    cut = engine.generate_autoregressive(PROMPTS[1], params(max_new_tokens=30, stop=word))[0]
    assert cut.finish_reason == "stop" and word not in cut.text
    assert cut.nfe <= 5 and cut.token_ids == whole.token_ids[: cut.nfe]


def test_what_only_refines_is_refused(engine: Engine):
    with pytest.raises(RequestError, match="autoregressive: the prompt has a draft, expected none"):
        engine.generate_autoregressive(Prompt("the user", draft="is here"))
    with pytest.raises(ConfigError, match="mask_token is None, expected a piece"):
        engine.generate(PROMPTS[0])
    with pytest.raises(ConfigError, match="suppress_tokens: id 999 is given"):
        engine.generate_autoregressive(PROMPTS[0], params(suppress_tokens=(999,)))
    with pytest.raises(ConfigError, match="params: 1 given for 2 prompts"):
        engine.generate_autoregressive(PROMPTS[:2], [params()])


def test_the_default_base_answers_as_in_transformers(default_checkpoint):
    engine = Engine.load(default_checkpoint.folder, adapter=None, mask_token=None, dtype="float32")
    theirs = AutoModelForCausalLM.from_pretrained(default_checkpoint.folder, dtype=torch.float32).eval()
    prompts = ["What is the capital of France?"]
    results = engine.generate_autoregressive(prompts, params(max_new_tokens=9))
    for prompt, result in zip(prompts, results, strict=True):
        ids = engine.codec.encode(engine.codec.render_chat([{"role": "user", "content": prompt}]))
        wanted = theirs.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=9)[0, len(ids) :].tolist()
        assert list(result.token_ids) == wanted
    assert "Paris" in results[0].text


def test_an_engine_with_an_adapter_is_refused(engine: Engine, monkeypatch):
    monkeypatch.setattr(engine, "adapter_facts", SimpleNamespace(name="ours"))
    with pytest.raises(ConfigError, match="autoregressive: this engine has the adapter ours, expected the base alone"):
        engine.generate_autoregressive("What?")
