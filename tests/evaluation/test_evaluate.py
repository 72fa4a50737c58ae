"""The command from flags to files on a tiny model and made-up sets: resumed, repeated, refused; and the search for a profile."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from pathlib import Path

import pytest
from tiny_families import make_family

from lad_engine.engine import Engine
from lad_engine.errors import ConfigError
from lad_engine.evaluate import main
from lad_engine.evaluation import conditions, open_answers
from lad_engine.evaluation.hub_sets import HUB_SETS
from lad_engine.evaluation.profile_search import choose
from lad_engine.evaluation.sets import Example, load_set, read_questions, subset
from lad_engine.evaluation.tasks import TASKS
from tiny_adapter import write_adapter
from tiny_checkpoint import make_tiny

real = conditions.decode
QUESTION = {"type": "mc", "prompt": "the sun is", "choices": ["on", "in the sea", "here", "a user"], "label": 1}
STORY = {"sentences": ["A man ran.", "He fell.", "He got up.", "He ran on."], "choices": ["He won.", "It is a cat."], "label": 0}
ROWS = {
    "arc_easy_test": QUESTION,
    "arc_challenge_test": QUESTION,
    "mmlu_test": {**QUESTION, "subject": "sums"},
    "hellaswag_validation": QUESTION,
    "piqa_validation": {**QUESTION, "choices": ["run", "sit"]},
    "gsm8k_test": {"prompt": "one and two", "answers": ["3"]},
    "lambada_test": {"prompt": "the sun is in the", "answers": ["sea"]},
    "rocstories_cloze_val2016": {"prompt": "x", **STORY},
    "humaneval": {
        "prompt": "def f(x):\n",
        "answers": ["    return x\n"],
        "test": "def check(f):\n    assert f(1) == 1\n",
        "entry_point": "f",
    },
}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A base, an adapter, every set with five examples, three prompts."""
    world = tmp_path_factory.mktemp("world")
    make_tiny(world / "base", tie=True)
    write_adapter(world / "base", world / "a.safetensors", predicts_next_token=True)
    (world / "data").mkdir()
    for name, row in ROWS.items():
        lines = [
            json.dumps({"id": f"{name}/{n}", **row, "prompt": row["prompt"] + (" now" * n if name != "humaneval" else "")})
            for n in range(5)
        ]
        (world / "data" / f"{name}.jsonl").write_text("\n".join(lines))
    (world / "prompts.txt").write_text("# ours\nthe user\nthe sea and the sun\n\nan answer\n")
    return world


@pytest.fixture
def evaluate(world: Path, tmp_path: Path):
    """Runs the command on the tiny world; returns its exit code."""

    def call(*words: str) -> int:
        fixed = ["--model", str(world / "base"), "--adapter", str(world / "a.safetensors"), "--data", str(world / "data")]
        return main([*words, *fixed, "--prompts", str(world / "prompts.txt"), "--threads", "1"])

    return call


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def of(result: dict, task: str, word: str) -> dict:
    return next(one for one in result["conditions"] if one["task"] == task and word in one["condition"])


def test_every_task_under_every_condition(evaluate, tmp_path: Path):
    out = tmp_path / "all.json"
    flags = ["--limit", "2", "--profile", "adapter", "--steps", "2", "--max-new-tokens", "4", "--step-counts", "1,5", "--copies", "2"]
    assert evaluate("--tasks", "all", "--allow-code-execution", "--out", str(out), *flags) == 0
    result = read(out)
    tasks = {one["task"] for one in result["conditions"]}
    assert tasks == {*TASKS, "open"}
    for name, task in TASKS.items():
        ways = [one["settings"]["way"] for one in result["conditions"] if one["task"] == name]
        likelihoods = ["masked likelihood", "exact likelihood"] if task.options else []
        assert ways == ["diffusion", "autoregressive", "autoregressive", *likelihoods]
    one = of(result, "arc_easy", "tiny, adapter settings")
    assert one["settings"]["sampling"]["steps"] == 2 and one["settings"]["model"]["adapter"] == "tiny" and one["examples"] == 2
    assert of(result, "rocstories", "tiny")["metrics"]["rouge_1"]["interval"] == "bootstrap"
    # Two steps for a gap of as many positions as the third sentence has tokens; the words around it are not counted.
    assert of(result, "rocstories", "tiny")["metrics"]["tpf"]["value"] == len(" He got up.") / 2
    assert of(result, "humaneval", "greedy")["metrics"]["pass_at_1"]["value"] == 0.0
    assert of(result, "lambada", "exact")["metrics"]["target_perplexity"]["value"] > 1
    # the same length for everyone: what the reference has
    # Re-noised decodes make every step: their first ones, with all hidden, look settled.
    assert of(result, "open", "re-noising, 5 steps")["metrics"]["nfe"]["value"] == 5
    stops = {one["condition"]: one["settings"]["sampling"].get("early_stop") for one in result["conditions"] if one["task"] == "open"}
    assert stops["re-noising, 5 steps"] is False and stops["no re-noising, 5 steps"] is True
    assert [one["condition"] for one in result["conditions"] if one["task"] == "open"] == [
        "re-noising, 1 steps",
        "no re-noising, 1 steps",
        "re-noising, 5 steps",
        "no re-noising, 5 steps",
        "base, greedy",
        "base, sampled",
    ]
    table = out.with_suffix(".md").read_text()
    assert "### gsm8k" in table and "judge PPL" in table and "[" in table
    for plot in ("quality", "convergence"):
        assert out.with_suffix(f".{plot}.png").read_bytes().startswith(b"\x89PNG")


def test_the_papers_settings_per_task(evaluate, tmp_path: Path, monkeypatch):
    asked: list = []

    def one_step(condition, prompts, params):
        asked.extend(params)
        return real(condition, prompts, [one.replace(steps=1, max_new_tokens=4) for one in params])

    monkeypatch.setattr(conditions, "decode", one_step)
    flags = ["--limit", "1", "--baselines", "none", "--scoring", "generation"]
    assert evaluate("--tasks", "arc_easy,gsm8k", *flags, "--out", str(tmp_path / "p.json")) == 0
    arc, gsm = asked
    assert (arc.steps, arc.noise_start, arc.top_k, arc.top_p, arc.remasking) == (16, 1.0, 1, 0.1, "random")
    assert (gsm.steps, gsm.noise_start, gsm.top_k, gsm.tokens_per_step, gsm.remasking) == (256, 0.0, 1, 4, "none")
    # a window of 256 positions, the prompt included
    assert 128 < gsm.max_new_tokens < 256 and arc.max_new_tokens < gsm.max_new_tokens


def test_a_run_goes_on_where_it_was_interrupted_and_repeats_bit_for_bit(evaluate, tmp_path: Path, monkeypatch, capsys):
    words = [
        "--tasks",
        "arc_easy",
        "--scoring",
        "generation",
        "--profile",
        "adapter",
        "--steps",
        "2",
        "--max-new-tokens",
        "4",
        "--batch-size",
        "2",
    ]
    assert evaluate(*words, "--out", str(tmp_path / "whole.json")) == 0
    whole, done = tmp_path / "whole.json", []

    def until_the_third(condition, prompts, params):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(len(prompts))
        return real(condition, prompts, params)

    monkeypatch.setattr(conditions, "decode", until_the_third)
    cut = tmp_path / "cut" / "whole.json"
    assert evaluate(*words, "--out", str(cut)) == 130
    assert "goes on from there" in capsys.readouterr().err and done == [2, 2] and not cut.exists()
    ledger = cut.with_suffix(".examples.jsonl")
    with ledger.open("a") as file:
        file.write('{"key": "half a li')
    done.clear()
    monkeypatch.setattr(
        conditions, "decode", lambda condition, prompts, params: done.append(len(prompts)) or real(condition, prompts, params)
    )
    assert evaluate(*words, "--out", str(cut)) == 0
    # five examples in three conditions, four of them known
    assert sum(done) == 11
    assert read(cut)["conditions"] == read(whole)["conditions"]
    before = whole.read_bytes()
    shutil.rmtree(tmp_path / "cut")
    whole.with_suffix(".examples.jsonl").unlink()
    assert evaluate(*words, "--out", str(whole)) == 0
    assert whole.read_bytes() == before
    # other settings are other keys
    done.clear()
    assert evaluate(*words[:-1], "3", "--seed", "5", "--baselines", "none", "--out", str(whole)) == 0
    assert sum(done) == 5


def test_samples_hold_the_command_and_every_answer(evaluate, world: Path, tmp_path: Path):
    out = tmp_path / "samples.txt"
    assert evaluate("--samples", "--out", str(out), "--steps", "2") == 0
    text = out.read_text()
    assert text.startswith("$ python -m lad_engine.evaluate --samples --out samples.txt") and "steps 2" in text
    assert all(prompt in text for prompt in ("1. the user", "2. the sea and the sun", "3. an answer")) and text.count(" passes)") == 3


def test_the_search_writes_the_profile_that_the_engine_then_decodes_with(evaluate, world: Path, capsys):
    place = world / "a.profile.json"
    assert evaluate("--tune-profile", "--floor", "5%", "--step-counts", "1,2", "--max-new-tokens", "5") == 0
    try:
        record = read(place)
        shown = capsys.readouterr().out
        assert str(place) in shown and shown.count("* ") == 1 and record["chosen_by"]["candidates"] == 22
        assert record["chosen_by"]["quality"]["value"] >= 0.95 * record["chosen_by"]["best_quality"]
        engine = Engine.load(world / "base", adapter=world / "a.safetensors")
        assert engine.sampling() == engine.sampling("paper", **record["settings"]).replace(profile="tuned")
    finally:
        place.unlink()


def test_an_interrupted_search_goes_on_and_leaves_its_candidates(evaluate, world: Path, tmp_path: Path, monkeypatch, capsys):
    place, kept = world / "a.profile.json", world / "a.profile.examples.jsonl"
    words = ["--tune-profile", "--step-counts", "1", "--max-new-tokens", "5", "--limit", "1"]
    done: list[int] = []

    def until_the_third(condition, prompts, params):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(len(prompts))
        return real(condition, prompts, params)

    monkeypatch.setattr(open_answers, "decode", until_the_third)
    assert evaluate(*words) == 130
    assert "goes on from there" in capsys.readouterr().err and len(kept.read_text().splitlines()) == 2 and not place.exists()
    counted: list[int] = []
    monkeypatch.setattr(open_answers, "decode", lambda *asked: counted.append(1) or real(*asked))
    assert evaluate(*words) == 0
    candidates = read(place)["chosen_by"]["candidates"]
    place.unlink()
    assert len(counted) == candidates - 2 and not kept.exists()
    assert evaluate(*words, "--out", str(tmp_path / "tune.json")) == 0
    place.unlink()
    found = read(tmp_path / "tune.json")
    assert len(found["trials"]) == candidates and {"name", "settings", "quality", "nfe"} <= set(found["trials"][0])


def test_a_profile_that_could_not_be_written_is_refused_before_the_search(evaluate, monkeypatch, capsys):
    monkeypatch.setattr(open_answers, "decode", lambda *_: pytest.fail("searched"))
    monkeypatch.setattr("os.access", lambda *_: False)
    assert evaluate("--tune-profile") == 2
    assert "a.profile.json: cannot be written, expected a folder that can be" in capsys.readouterr().err


def test_open_prompts_are_missed_in_all_too(world: Path, capsys):
    words = ["--tasks", "all", "--allow-code-execution", "--out", "x.json", "--data", str(world / "data")]
    assert main([*words, "--model", str(world / "base")]) == 2
    assert "prompts: there are none" in capsys.readouterr().err


def test_the_fewest_passes_within_the_floor_win():
    def trial(name: str, quality: float, nfe: float) -> dict:
        return {"name": name, "quality": {"value": quality}, "nfe": {"value": nfe}}

    trials = [trial("best", 0.5, 30.0), trial("near", 0.495, 10.0), trial("as near", 0.497, 10.0), trial("far", 0.4, 2.0)]
    assert choose(trials, 0.02)["name"] == "as near"
    assert choose(trials, 0.0)["name"] == "best"
    assert choose(trials, 0.5)["name"] == "far"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--tasks", "arc_easy,nothing", "--out", "x.json"], "'nothing' is not a task"),
        (["--tasks", "humaneval", "--out", "x.json"], "--allow-code-execution is not given"),
        (["--tasks", "arc_easy"], "--out is not given"),
        (["--tasks", "open", "--samples", "--out", "x"], "expected one of --tasks"),
        (["--tasks", "gsm8k", "--out", "x.json", "--steps", "0"], "steps is 0"),
        (["--tasks", "gsm8k", "--out", "x.json", "--profile", "papr"], "Did you mean paper"),
        (["--tune-profile", "--floor", "200%"], "not a share"),
        (["--tasks", "gsm8k", "--out", "x.json", "--scoring", "likelihood"], "there is nothing to measure on gsm8k"),
        (["--tasks", "gsm8k", "--out", "x.md"], "x.md is the table's name, expected the JSON's"),
        (["--tune-profile", "--top-k", "3"], "tune-profile: top_k is given, expected only max_new_tokens"),
        (["--tasks", "gsm8k", "--out", "."], "out: . is a folder, expected a file"),
        (["--tasks", "gsm8k", "--out", ""], "out: . is a folder, expected a file"),
        (["--tasks", "gsm8k", "--out", f"{__file__}/x.json"], "test_evaluate.py, expected a folder that can be"),
        (["--tasks", "gsm8k", "--out", "x.json", "--baselines", "best"], "baselines is 'best'"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(evaluate, capsys, words, sentence):
    assert evaluate(*words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and sentence in error and error.count("\n") == 1


def test_a_model_that_is_not_causal_is_no_judge(evaluate, monkeypatch, capsys):
    load = Engine.load

    def masked(*words, **settings):
        engine = load(*words, **settings)
        engine.family = "masked"
        return engine

    monkeypatch.setattr(Engine, "load", masked)
    assert evaluate("--tasks", "open", "--out", "x.json") == 2
    assert "judge: the model decodes as masked" in capsys.readouterr().err


def test_a_checkpoint_without_a_chat_template_is_asked_in_plain_text(world: Path, tmp_path: Path, capsys):
    folder, out = make_family(tmp_path / "diffugpt", "diffugpt"), tmp_path / "plain.json"
    words = ["--model", folder, "--adapter", "none", "--data", world / "data", "--limit", 1, "--copies", 2, "--out", out, "--threads", 1]
    decoded = ["--profile", "adapter", "--steps", 2, "--max-new-tokens", 4]
    assert main(list(map(str, ["--tasks", "arc_easy,gsm8k", *decoded, *words]))) == 0
    ways = [(one["task"], one["settings"]["way"]) for one in read(out)["conditions"]]
    assert ways == [("arc_easy", "diffusion"), ("arc_easy", "masked likelihood"), ("gsm8k", "diffusion")]
    assert main(list(map(str, ["--tasks", "gsm8k", *words]))) == 2
    assert "profile is task, LAD's settings per task, but this checkpoint decodes as masked" in capsys.readouterr().err


def test_a_set_that_is_nowhere_names_where_it_was_looked_for(evaluate, world: Path, tmp_path: Path, capsys):
    assert main(["--tasks", "rocstories", "--out", "x.json", "--data", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert str(tmp_path / "rocstories_cloze_val2016.jsonl.gz") in error and "no free copy" in error


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"choices": 5}, "choices is 5, expected a list of texts"),
        ({"choices": ["a", 2], "label": 0}, "expected a list of texts"),
        ({"answers": None}, "answers is None, expected a list of texts"),
        ({"choices": ["a", "b"], "label": 2}, "label is 2, expected the place of the right choice, 0 to 1"),
        ({"choices": ["a", "b"]}, "label is None, expected the place"),
    ],
)
def test_a_row_that_no_task_can_read_is_refused(tmp_path: Path, row, said):
    (tmp_path / "gsm8k_test.jsonl").write_text(json.dumps({"id": "1", "prompt": "a", **row}) + "\n")
    with pytest.raises(ConfigError, match=f"line 1: .*{said}"):
        load_set("gsm8k_test", tmp_path)


def test_a_subset_is_the_same_whatever_the_order():
    examples = [Example(str(n), "x") for n in range(50)]
    assert subset(examples, 7) == subset(examples[::-1], 7) == subset(examples, 20)[:7]
    assert len(subset(examples, None)) == 50


def test_rows_of_the_hub_become_ours():
    arc = {"id": "q1", "question": "Q?", "choices": {"text": ["a", "b"], "label": ["1", "2"]}, "answerKey": "2"}
    assert HUB_SETS["arc_easy_test"].read(arc) == {"key": "q1", "prompt": "Q?", "choices": ["a", "b"], "label": 1}
    assert HUB_SETS["gsm8k_test"].read({"question": "Q", "answer": "so\n#### 1,000"})["answers"] == ["1,000"]
    assert HUB_SETS["lambada_test"].read({"text": "I like the sea"}) == {"prompt": "I like the", "answers": ["sea"]}
    swag = {"activity_label": "Health", "ctx_a": "[header] How to rest [title] Sit. [step] Wait.", "ctx_b": "", "endings": ["it [step] c"]}
    swag = HUB_SETS["hellaswag_validation"].read({**swag, "label": "0"})
    assert (swag["prompt"], swag["choices"], swag["label"]) == ("Health: How to rest. Sit. Wait.", ["it c"], 0)
    swag = HUB_SETS["hellaswag_validation"].read({"activity_label": "A", "ctx_a": "B.", "ctx_b": "the c", "endings": [], "label": "0"})
    assert swag["prompt"] == "A: B. The c"
    assert HUB_SETS["piqa_validation"].read({"goal": "g", "sol1": "x", "sol2": "y", "label": 1})["choices"] == ["x", "y"]
    assert HUB_SETS["mmlu_test"].read({"question": "Q", "choices": ["a"], "answer": 0, "subject": "s"})["subject"] == "s"
    code = {"task_id": "H/0", "prompt": "def f():", "canonical_solution": " pass", "test": "t", "entry_point": "f"}
    assert HUB_SETS["humaneval"].read(code)["answers"] == [" pass"]


def test_committed_prompts_are_twenty_and_not_trained_on():
    root = Path(__file__).parents[2]
    questions = [example.prompt for example in read_questions(root / "bench" / "quality" / "prompts.txt")]
    trained = set()
    for path in sorted((root / "bench" / "default_adapter" / "data").glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            trained.update(plain(" ".join(json.loads(line).get(name, "") for name in ("instruction", "input"))) for line in file)
    assert len(questions) == 20 and len(trained) > 1000
    assert not trained & {plain(question) for question in questions}


def plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def test_kept_answers_are_scored_by_the_rules_as_they_are_now(evaluate, tmp_path: Path):
    out = tmp_path / "o.json"
    words = ["--tasks", "arc_easy", "--scoring", "generation", "--baselines", "none", "--profile", "adapter", "--steps", "1"]
    words += ["--max-new-tokens", "2", "--limit", "1", "--out", str(out)]
    assert evaluate(*words) == 0
    ledger = out.with_suffix(".examples.jsonl")
    kept = read(ledger)
    # As an earlier rule might have left it, which could not read this answer.
    kept["row"] |= {"text": "The correct option is B.", "accuracy": False, "answered": False}
    ledger.write_text(json.dumps(kept) + "\n")
    assert evaluate(*words) == 0
    assert of(read(out), "arc_easy", "tiny")["metrics"]["accuracy"]["value"] == 1.0


def test_examples_draw_each_for_themselves_and_the_key_says_so(evaluate, tmp_path: Path, monkeypatch):
    asked = []

    def noted(condition, prompts, params):
        asked.append((condition.name, [one.seed for one in params]))
        return real(condition, prompts, params)

    monkeypatch.setattr(conditions, "decode", noted)
    flags = ["--tasks", "lambada", "--limit", "3", "--scoring", "generation", "--steps", "2"]
    assert evaluate(*flags, "--out", str(tmp_path / "a.json")) == 0
    seeds = dict(asked)
    assert all(len(set(own)) == 3 for own in seeds.values()) and len({tuple(own) for own in seeds.values()}) == 1
    result = read(tmp_path / "a.json")
    recorded = {one["condition"]: one["settings"]["sampling"]["seed"] for one in result["conditions"]}
    assert recorded["base, greedy"] == 0 and recorded["base, sampled"] == recorded["tiny, task settings"] == "0, with each example's id"
    assert evaluate(*flags, "--seed", "7", "--out", str(tmp_path / "b.json")) == 0
    assert not set(seeds["base, sampled"]) & set(asked[-1][1])
