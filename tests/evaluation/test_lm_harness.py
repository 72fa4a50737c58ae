"""The model class of lm-eval: its three calls on plain requests, and a whole local task where lm-eval is installed (offline)."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import sys
import types

import pytest

from lad_engine import Engine
from lad_engine.errors import ConfigError
from lad_engine.evaluation.likelihood import exact, masked
from tiny_adapter import write_adapter
from tiny_checkpoint import make_tiny

IS_INSTALLED = importlib.util.find_spec("lm_eval") is not None


@dataclasses.dataclass
class Request:
    """What lm-eval hands over, as far as a model reads it."""

    args: tuple


@pytest.fixture(scope="module")
def harness():
    """The module under test; without lm-eval the two names it takes from there are stood in for."""
    made = {}
    if not IS_INSTALLED:
        for name in ("lm_eval", "lm_eval.api", "lm_eval.api.model", "lm_eval.api.registry"):
            made[name] = sys.modules[name] = types.ModuleType(name)
        made["lm_eval.api.model"].LM = type("LM", (), {"__init__": lambda self: None})
        made["lm_eval.api.registry"].register_model = lambda name: lambda cls: cls
    yield importlib.import_module("lad_engine.evaluation.lm_harness")
    for name in [*made, "lad_engine.evaluation.lm_harness"]:
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp("base"), tie=True)


@pytest.fixture(scope="module")
def adapter(folder, tmp_path_factory):
    return write_adapter(folder, tmp_path_factory.mktemp("adapter") / "a.safetensors", predicts_next_token=True)


@pytest.fixture(scope="module")
def diffusion(harness, folder, adapter):
    return harness.LadEngineLM(engine=Engine.load(folder, adapter=adapter), steps=3, max_new_tokens=6, copies=4)


@pytest.fixture(scope="module")
def causal(harness, folder):
    return harness.LadEngineLM(model=str(folder), autoregressive=True, batch_size=2)


def test_likelihoods_split_a_text_where_it_is_one(diffusion, causal):
    # The space belongs to the continuation, on whichever side it is written.
    pairs = [Request(("the sun", " is here")), Request(("the sun ", "is here"))]

    def estimated(*ids):
        return masked(diffusion.engine, *ids, 4, "the sun/ is here")

    def summed(*ids):
        return exact(causal.engine, *ids)

    for model, score in ((diffusion, estimated), (causal, summed)):
        codec = model.engine.codec
        first, second = model.loglikelihood(pairs)
        assert first == score([codec.bos_id, *codec.encode("the sun")], codec.encode(" is here"))
        if model is causal:
            assert second == first
        assert isinstance(first[0], float) and isinstance(first[1], bool)


def test_a_token_that_reaches_over_the_seam_belongs_to_the_continuation(causal, monkeypatch):
    # "light" and "s" are one token together: split by counting, nothing would be left to score, which is the best of all scores.
    vocabulary = {"the light": [5, 6], "the lights": [5, 7], "the light is": [5, 6, 8]}
    monkeypatch.setattr(causal.engine.codec, "encode", vocabulary.__getitem__)
    start = causal.engine.codec.bos_id
    assert causal._pair("the light", "s") == ([start, 5], [7])
    assert causal._pair("the light", " is") == ([start, 5, 6], [8])


def test_an_empty_context_is_the_start_of_a_text(causal):
    codec = causal.engine.codec
    (pair,) = causal.loglikelihood([Request(("", "the sun"))])
    assert pair[0] == pytest.approx(exact(causal.engine, [codec.bos_id], codec.encode("the sun"))[0])
    assert causal.loglikelihood_rolling([Request(("the sun",))]) == [pair[0]]


def test_a_long_text_is_scored_in_blocks(causal):
    text = "the sea and " * 120
    ids, codec = causal.engine.codec.encode(text), causal.engine.codec
    room = causal.engine.facts.max_positions - 2
    assert len(ids) > room
    wanted = sum(exact(causal.engine, [codec.bos_id], ids[at : at + room])[0] for at in range(0, len(ids), room))
    assert causal.loglikelihood_rolling([Request((text,))]) == [pytest.approx(wanted)]


def test_a_context_beyond_the_window_is_read_by_its_end(diffusion, causal, caplog):
    asked, long = {"until": ["\n"], "max_gen_toks": 6}, "the sea and " * 400
    for model in (diffusion, causal):
        model._has_cut = False
        codec, most = model.engine.codec, model.engine.facts.max_positions
        ids, answer = codec.encode(long.rstrip()), codec.encode(" here")
        assert len(ids) > most
        (found,) = model.loglikelihood([Request((long.rstrip(), " here"))])
        assert found == model._score(ids[len(answer) + 1 - most :], answer, f"{long.rstrip()}/ here")
        (text,) = model.generate_until([Request((long, asked))])
        assert isinstance(text, str)
        assert len(codec.encode(model._end_of(long, 6))) == most - 7 and model._end_of("the sea", 6) == "the sea"
    assert sum("too long for the window" in record.message for record in caplog.records) == 2


def test_an_answers_length_is_lm_evals_own_where_nobody_names_one(diffusion, causal):
    assert causal._params({}).max_new_tokens == causal._params({"max_gen_toks": None}).max_new_tokens == 256
    assert causal._params({"max_tokens": 7}).max_new_tokens == 7 and diffusion._params({}).max_new_tokens == 6
    assert (
        causal._params({"temperature": 0.5}).temperature == 0.5
        and causal._params({"do_sample": False, "temperature": 0.5}).temperature == 0
    )


def test_generation_takes_the_requests_stop_words_and_length(diffusion, causal):
    asked = {"until": ["\n"], "max_gen_toks": 9, "do_sample": False, "temperature": 0.0}
    params = diffusion._params(asked)
    # What the caller fixed in model_args goes before what the task asks.
    assert (params.stop, params.max_new_tokens, params.steps) == (("\n",), 6, 3)
    assert (causal._params(asked).max_new_tokens, causal._params(asked).temperature) == (9, 0.0)
    assert causal._params({"do_sample": True, "temperature": 0.5, "until": "x"}).temperature == 0.5
    for model in (diffusion, causal):
        texts = model.generate_until([Request((f"the user {n}", asked)) for n in range(3)])
        assert len(texts) == 3 and all(isinstance(text, str) and "\n" not in text for text in texts)
        assert texts == model.generate_until([Request((f"the user {n}", asked)) for n in range(3)])


def test_an_answer_keeps_the_indent_that_a_program_goes_on_with(diffusion, causal, monkeypatch):
    for model, name in ((diffusion, "generate"), (causal, "generate_autoregressive")):
        engine, real = model.engine, getattr(model.engine, name)
        ids = (*engine.codec.encode("    return the sun\ndef a"), engine.eos_ids[0], 50)

        def answered(prompts, params, real=real, ids=ids):
            return [dataclasses.replace(result, text="return the sun", token_ids=ids) for result in real(prompts, params)]

        monkeypatch.setattr(engine, name, answered)
        assert model.generate_until([Request(("def f():\n", {"until": ["\ndef"], "max_gen_toks": 6}))]) == ["    return the sun"]
        assert model.generate_until([Request(("def f():\n", {"max_gen_toks": 6}))]) == ["    return the sun\ndef a"]


def test_a_wrong_setting_is_refused_at_once(harness, folder):
    with pytest.raises(ConfigError, match="stepz"):
        harness.LadEngineLM(model=str(folder), adapter="none", stepz=3)


def test_a_batch_size_arrives_as_text_and_copies_are_counted(harness, causal):
    sizes = {size: harness.LadEngineLM(engine=causal.engine, batch_size=size).batch_size_per_call for size in ("4", 3, "auto", "0")}
    assert sizes == {"4": 4, 3: 3, "auto": harness.BATCH, "0": harness.BATCH}
    for copies in (0, "many"):
        with pytest.raises(ConfigError, match=f"copies is {copies!r}, expected 1 or more"):
            harness.LadEngineLM(engine=causal.engine, copies=copies)


def test_a_family_without_such_an_estimate_has_no_likelihood(harness, folder, adapter):
    model = harness.LadEngineLM(engine=Engine.load(folder, adapter=adapter))
    model.engine.family = "simplex"
    with pytest.raises(ConfigError, match="decodes as simplex, expected one of lad, masked"):
        model.loglikelihood([Request(("the sun", " is"))])


def test_lm_evals_own_default_device_steps_down_with_a_word(harness, folder, monkeypatch, caplog):
    monkeypatch.setattr(harness.torch.cuda, "is_available", lambda: False)
    model = harness.LadEngineLM(model=str(folder), adapter="none", device="cuda:0")
    assert model.engine.config.device == "cpu" and "asks for cuda:0" in caplog.text


@pytest.mark.skipif(not IS_INSTALLED, reason="lm-eval is not installed (extra `eval`)")
def test_lm_eval_runs_local_tasks_with_it(harness, diffusion, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [{"q": f"the sun {n} is", "choices": [" here", " in the sea"], "gold": n % 2, "a": "here"} for n in range(4)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    common = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}}, "test_split": "test"}
    kinds = {
        "multiple_choice": {
            "doc_to_text": "{{q}}",
            "doc_to_choice": "choices",
            "doc_to_target": "gold",
            "metric_list": [{"metric": "acc"}],
        },
        "generate_until": {
            "doc_to_text": "{{q}}",
            "doc_to_target": "a",
            "generation_kwargs": {"until": ["."]},
            "metric_list": [{"metric": "exact_match"}],
        },
        "loglikelihood_rolling": {"doc_to_text": "", "doc_to_target": "{{q}}", "metric_list": [{"metric": "word_perplexity"}]},
    }
    for kind, more in kinds.items():
        # JSON is YAML.
        (tmp_path / f"{kind}.yaml").write_text(json.dumps({"task": f"tiny_{kind}", "output_type": kind, **common, **more}))
    evaluator, tasks = importlib.import_module("lm_eval.evaluator"), importlib.import_module("lm_eval.tasks")
    registry = importlib.import_module("lm_eval.api.registry")
    assert registry.get_model("lad_engine") is harness.LadEngineLM
    manager = tasks.TaskManager(include_path=str(tmp_path), include_defaults=False)
    found = evaluator.simple_evaluate(model=diffusion, tasks=[f"tiny_{kind}" for kind in kinds], task_manager=manager, bootstrap_iters=0)[
        "results"
    ]
    assert found["tiny_multiple_choice"]["acc,none"] in (0.0, 0.25, 0.5, 0.75, 1.0)
    assert found["tiny_loglikelihood_rolling"]["word_perplexity,none"] > 1.0
    assert found["tiny_generate_until"]["exact_match,none"] == 0.0
