"""What a table is made of: differences from the baseline, and answers of the lengths that are recorded."""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import pytest

from lad_engine import Engine
from lad_engine.evaluate import _task_works
from lad_engine.evaluation import intervals
from lad_engine.evaluation.conditions import GREEDY, Condition
from lad_engine.evaluation.ledger import Ledger
from lad_engine.evaluation.measure import Work, generation_work, run
from lad_engine.evaluation.progress import Countdown
from lad_engine.evaluation.sets import Example
from lad_engine.evaluation.tasks import TASKS
from lad_engine.text.prompts import Prompt
from tiny_adapter import write_adapter
from tiny_checkpoint import make_tiny

EXAMPLES = [Example(str(n), f"the sun {n}", ("on", "in the sea"), n % 2) for n in range(4)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("base"), tie=True)


@pytest.fixture(scope="module")
def base(folder: Path) -> Engine:
    return Engine.load(folder, adapter=None, mask_token=None)


def said(base: Engine, way: str, name: str, texts: list[str]) -> Work:
    """A work whose answers are given."""
    condition = Condition(name, way, base, "adapter")
    settings = {"texts": texts}
    plain = generation_work(TASKS["piqa"], Condition(name, "autoregressive", base), EXAMPLES)
    facts = {"nfe": 1, "tokens": 1, "settled_at": 1}
    rows = {example.id: {**facts, "text": text} for example, text in zip(EXAMPLES, texts, strict=True)}
    return Work("piqa", condition, EXAMPLES, settings, lambda batch: [rows[one.id] for one in batch], plain.summarise, plain.figures)


def test_a_cell_is_compared_with_its_baseline_question_by_question(base: Engine):
    works = [
        said(base, "diffusion", "mine", ["A", "B", "B", "A"]),
        said(base, "autoregressive", "base, greedy", ["A", "A", "B", "A"]),
        said(base, "autoregressive", "base, sampled", ["B", "B", "B", "B"]),
    ]
    mine, greedy, sampled = run(works, Ledger(None), 2, Countdown(io.StringIO(), 8))
    assert mine["difference"]["from"] == "base, greedy" and "difference" not in greedy and "difference" not in sampled
    found = mine["difference"]["metrics"]["accuracy"]
    assert found == intervals.difference([1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0])
    assert (found["value"], found["interval"], found["n"]) == (0.25, "paired bootstrap", 4)


def test_who_asks_for_the_default_length_does_not_get_answers_of_the_windows_rest(base: Engine):
    gsm8k, ways = TASKS["gsm8k"], {"window": {}, "asked": {"max_new_tokens": 64}}
    conditions = {name: Condition(name, "autoregressive", base, settings={**GREEDY, **more}) for name, more in ways.items()}
    works = {name: generation_work(gsm8k, condition, EXAMPLES) for name, condition in conditions.items()}
    # 64 is the default itself.
    assert conditions["window"].params({}).max_new_tokens == 64
    assert works["window"].settings != works["asked"].settings
    assert works["window"].settings["sampling"]["max_new_tokens"] is None and works["asked"].settings["sampling"]["max_new_tokens"] == 64


def test_the_base_alone_is_asked_under_the_adapters_system_prompt(base: Engine, folder: Path, tmp_path: Path):
    adapter = write_adapter(folder, tmp_path / "a.safetensors", system_prompt="Be kind.")
    engine = Engine.load(folder, adapter=adapter)
    arguments = argparse.Namespace(profile="adapter", scoring=("generation", "likelihood"), baselines=("greedy",), copies=1)
    works = _task_works(arguments, "piqa", engine, base, EXAMPLES, {})
    assert [work.condition.system for work in works] == [None, "Be kind.", None, "Be kind."]
    greedy = works[1].condition
    assert greedy.asked(Prompt("a")) == Prompt("a", system="Be kind.")
    # What is said of the system, and text that is no chat, stays as it is.
    for prompt in (Prompt("a", system=""), Prompt("a", format="raw"), Prompt(messages=({"role": "user", "content": "a"},))):
        assert greedy.asked(prompt) is prompt
    record, plain = (run([work], Ledger(None), 2, Countdown(io.StringIO(), 8))[0] for work in (works[3], works[2]))
    assert record["settings"]["system_prompt"] == "Be kind." and "system_prompt" not in plain["settings"]


def test_the_baseline_gets_as_many_tokens_as_the_profile_it_is_compared_with(base: Engine, folder: Path, tmp_path: Path):
    engine = Engine.load(folder, adapter=write_adapter(folder, tmp_path / "a.safetensors"))
    arguments = argparse.Namespace(profile="adapter", scoring=("generation",), baselines=("greedy",), copies=1)
    mine, greedy = _task_works(arguments, "gsm8k", engine, base, EXAMPLES, {})
    assert greedy.settings["sampling"]["max_new_tokens"] == mine.settings["sampling"]["max_new_tokens"] == 64
    arguments.profile = "task"
    lengths = [work.settings["sampling"]["max_new_tokens"] for work in _task_works(arguments, "gsm8k", engine, base, EXAMPLES, {})]
    assert lengths == [None, None]
