"""The scripts behind the default adapter's data run: questions keep away from held-out prompts, and the base answers them."""

from __future__ import annotations

import gzip
import importlib
import json
import sys

import pytest
from bench_on_path import ROOT


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "bench" / "default_adapter"))
    return importlib.import_module


def test_everyday_questions_are_many_different_and_none_says_a_held_out_prompt(script, tmp_path, monkeypatch, capsys):
    everyday = script("everyday_questions")
    rows = [
        {"input": "Where is a boat kept?\nA. sea\nB. harbor"},
        {"input": "How many wheels has a bicycle?\nA. two"},
        {"input": "A boat is\nA. big"},
    ]
    with gzip.open(tmp_path / "csqa.jsonl.gz", "wt", encoding="utf-8") as out:
        out.write("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(sys, "argv", ["everyday_questions.py", str(tmp_path / "csqa.jsonl.gz")])
    everyday.main()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    asked = [line["instruction"] for line in lines]
    assert len(asked) == len(set(asked)) > 1000
    assert [line["instruction"] for line in lines if line["source"] == "csqa"] == ["Where is a boat kept?"]
    prompts = everyday.held_out()
    assert len(prompts) == 40
    assert "Write a short sentence about a storm." in everyday.everyday() and "Write a short sentence about a storm." not in asked
    assert not any(
        len(everyday.words(question) & prompt) >= 0.6 * len(everyday.words(question) | prompt) for question in asked for prompt in prompts
    )


def test_the_base_answers_the_open_questions_and_leaves_out_what_repeats(script, tmp_path, monkeypatch, capsys):
    answers = script("self_answers")
    rows = [
        {"instruction": "What is the capital of France?", "input": "", "output": "", "source": "new"},
        {"instruction": "What is two plus two?", "input": "", "output": "Four.", "source": "known"},
    ]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(sys, "argv", ["self_answers.py", str(tmp_path / "q.jsonl")])
    monkeypatch.setattr(answers, "MAX_NEW_TOKENS", 10)
    answers.main()
    (line,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert line == {"system": "", **rows[0], "output": "The capital of France is Paris.", "source": "self_new"}
    assert answers.clean("It is is red.", True) is None and answers.clean("It is red. And then it", False) == "It is red."
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--system", "Answer in one short sentence."])
    answers.main()
    (line,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert line["system"] == "Answer in one short sentence." and line["output"] == "The capital of France is Paris."


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        ("A spoon is a tool that people eat soup with. It is old.", "A spoon is a tool that people eat soup with."),
        ("Yes. It is a spoon.", "Yes. It is a spoon."),
        ("The answer to this classic question is hard.", None),
        ("It is the color of the sky and the color of the sea.", None),
        ("Plants, flowers and plants need what plants need.", None),
        ("It is long, " + ", ".join(f"word{n}" for n in range(20)) + ".", None),
    ],
)
def test_a_short_answer_is_one_sentence_that_says_something_and_nothing_twice(script, answer, kept):
    assert script("self_answers").clean(answer, True, is_short=True) == kept


def test_choice_questions_ask_for_a_letter_in_half_of_the_rows(script, tmp_path, monkeypatch, capsys):
    choices = script("choice_questions")
    options = "A. sea\nB. harbor\nC. sky"
    rows = [
        {"instruction": "Choose.", "input": f"Where is boat {n} kept?\n{options}", "output": "The answer is B. harbor.", "source": "x"}
        for n in range(9)
    ]
    rows[3] = {**rows[3], "output": "harbor"}
    rows[4] = {**rows[4], "input": "no options"}
    rows[5] = {**rows[5], "input": "long " * 100 + options}
    with gzip.open(tmp_path / "x.jsonl.gz", "wt", encoding="utf-8") as out:
        out.write("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(sys, "argv", ["choice_questions.py", str(tmp_path / "x.jsonl.gz")])
    choices.main()
    made = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(made) == 6 and made[1] == rows[1] and made[3] == rows[6] and made[5] == rows[8]
    assert [row["output"] for row in made[::2]] == ["B", "B", "B"] and not any(row["input"] for row in made[::2])
    assert made[0]["instruction"] == f"Where is boat 0 kept?\n{options}\nWhich letter is right? Answer with the letter only."
    assert made[2]["instruction"] == f"Where is boat 2 kept?\n\n{options}\n\nAnswer with the letter of the correct option."
