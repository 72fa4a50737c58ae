"""--precision and --agreement-report: what reaches the engine, what is printed, what is refused before anything is loaded."""

from __future__ import annotations

import json

import pytest
from fake_engine import FakeEngine

from lad_engine import generate


class ReportingEngine(FakeEngine):
    """Keeps what its report was asked for."""

    def agreement(self, prompts=None, params=None, batch_size=8):
        self.asked = (prompts, params, batch_size)
        return type("Report", (), {"sentence": lambda _: "int8 agrees", "to_json": lambda _: '{"verdict": "holds"}'})()


def run(*argv, engine=None):
    return generate.main([*map(str, argv)], load=(engine or ReportingEngine()).load)


def test_the_precision_reaches_the_engine_and_the_record(capsys):
    engine = ReportingEngine()
    assert run("What?", "--precision", "int8", "--json", engine=engine) == 0
    assert engine.load_arguments["config"].precision == "int8"
    assert "precision" in json.loads(capsys.readouterr().out)


def test_the_report_is_json_on_stdout_and_a_sentence_beside_it(capsys):
    engine = ReportingEngine()
    assert run("--precision", "int8", "--agreement-report", "--steps", 4, engine=engine) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {"verdict": "holds"} and err == "int8 agrees\n"
    assert engine.asked[0] is None and engine.asked[1].steps == 4 and not engine.batches


def test_prompts_are_compared_and_not_answered(tmp_path, capsys):
    engine, file = ReportingEngine(), tmp_path / "prompts.txt"
    file.write_text("One?\nTwo?\n")
    assert run("--precision", "int8", "--agreement-report", "--prompts", file, "--batch-size", 1, engine=engine) == 0
    assert [prompt.text for prompt in engine.asked[0]] == ["One?", "Two?"] and engine.asked[2] == 1
    assert not engine.batches and json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("--agreement-report",), "expected --precision fp8, int8, int8_weights"),
        (("What?", "--precision", "int4"), "precision is 'int4', expected one of auto, fp8, int8, int8_weights"),
    ],
)
def test_a_wrong_precision_is_one_sentence_and_nothing_is_loaded(capsys, argv, words):
    engine = ReportingEngine()
    assert run(*argv, engine=engine) == 2
    out, err = capsys.readouterr()
    assert out == "" and words in err and err.count("\n") == 1
    assert engine.load_arguments == {}
