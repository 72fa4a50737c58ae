"""Training trials: one setting apart from the reference, judged on the same texts, and never run twice."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import bench_on_path  # noqa: F401 - its import is its effect
import pytest

from bench import trials
from bench.results import check_result
from bench.trials import ALL_LINEAR, AXES, REFERENCE, Trial, main
from lad_engine.adapters.reader import read_adapter
from lad_engine.adapters.single_file import save_single_file
from lad_engine.training.config import TrainConfig
from tiny_adapter import write_adapter
from tiny_checkpoint import make_tiny


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trials")
    make_tiny(folder / "base")
    for name in ("self_answers", "permissive"):
        rows = [{"instruction": f"{name} {n}", "output": f"the user {n} {name}"} for n in range(24)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "train.toml").write_text(
        'corruption = "mixed"\nmask_token = "MASK"\nrank = 4\nmax_length = 120\nbatch_size = 4\nval_share = 0.3\n'
        "predicts_next_token = true\n"
    )
    return folder


def arguments(place, *more):
    data = [str(place / f"{name}.jsonl") for name in ("self_answers", "permissive")]
    own = ["--config", place / "train.toml", "--base", place / "base", "--data", *data, "--device", "cpu", "--runs", place / "runs"]
    return [str(one) for one in (*own, "--out", place / "out.json", "--quick", *more)]


def test_every_trial_changes_one_axis_of_the_reference():
    reference = TrainConfig(data=("d/self_answers.jsonl.gz", "d/known.jsonl.gz=2", "d/permissive.jsonl.gz=0.5"), targets=ALL_LINEAR)
    found = trials.trials(reference, list(AXES), Path("runs"))
    assert found[0].name == REFERENCE and len({one.config.output for one in found}) == len(found)
    for one in found[1:]:
        changed = {f.name for f in dataclasses.fields(TrainConfig) if getattr(one.config, f.name) != getattr(reference, f.name)}
        assert changed - {"output"} <= set(AXES[one.axis][one.name]) and len(changed) > 1
    names = {one.name for one in found}
    # What the reference is already is not run again.
    assert "all linear" not in names and "q and v" in names and "paper" not in names and {"code", "mask_only", "mixed"} <= names
    own = next(one for one in found if one.name == "the base's own answers")
    assert own.config.data == ("d/self_answers.jsonl.gz",)
    assert {one.axis for one in found[1:]} == set(AXES)


def test_trials_are_trained_judged_and_not_repeated(place, capsys, monkeypatch):
    axes = ("--axes", "shift", "data", "whole answers masked")
    assert main(arguments(place, *axes, "--list")) == 0
    assert capsys.readouterr().out.count("to do") == 6
    assert main(arguments(place, *axes)) == 0
    result = json.loads((place / "out.json").read_text())
    check_result(result)
    rows = result["rows"]
    data = ["the base's own answers", "texts of data sets"]
    assert [row["trial"] for row in rows] == [REFERENCE, "same position", *data, "10% masked whole", "30% masked whole"]
    # Judged on the same texts: the same number of damaged tokens for every trial.
    counts = {tuple(count for _, count in row["texts"]) for row in rows}
    assert len(counts) == 1 and rows[0]["against_reference"]["gain"] == 0
    assert all(row["against_reference"]["gain"] == pytest.approx(rows[0]["loss"] - row["loss"]) for row in rows)
    table = (place / "out.md").read_text()
    assert table.count("\n") == 8 and all(row["trial"] in table for row in rows)

    def never(*_):
        raise AssertionError("a finished trial is trained or measured again")

    monkeypatch.setattr(trials.trainer, "main", never)
    monkeypatch.setattr(trials, "measured", never)
    assert main(arguments(place, *axes)) == 0
    again = json.loads((place / "out.json").read_text())["rows"]
    assert again == rows
    assert main(arguments(place, *axes, "--list")) == 0
    assert capsys.readouterr().out.count(", trained") == 6
    # Some of the axes: the rows of the others stay, against the same reference.
    assert main(arguments(place, "--axes", "shift")) == 0
    some = json.loads((place / "out.json").read_text())["rows"]
    assert some == rows and (place / "out.md").read_text() == table


def test_a_trial_that_was_stopped_goes_on_and_says_so(place, capsys, monkeypatch):
    command = trials.trainer.main

    def stopped(given):
        # As where a signal arrives: a checkpoint of fewer updates than asked for.
        settings = Path(given[1])
        text = settings.read_text()
        settings.write_text(text.replace("steps = 2", "steps = 1"))
        status = command(given)
        settings.write_text(text)
        return status

    monkeypatch.setattr(trials.trainer, "main", stopped)
    rank = arguments(place, "--axes", "rank", "--runs", str(place / "other"))
    assert main(rank) == 130 and "the same command goes on here" in capsys.readouterr().err
    seen = []
    monkeypatch.setattr(trials.trainer, "main", lambda given: (seen.append("--resume" in given), command(given))[1])
    assert main(arguments(place, "--axes", "shift", "--runs", str(place / "other"))) == 0
    assert seen == [True, False]


@pytest.mark.parametrize("updates, is_finished", [(4, True), (2, False)])
def test_an_adapter_of_an_earlier_checkpoint_is_not_judged_for_the_last(tmp_path, updates, is_finished):
    base = make_tiny(tmp_path / "base")
    (tmp_path / "checkpoints" / "step-00000004").mkdir(parents=True)
    made = read_adapter(write_adapter(base, tmp_path / "a.safetensors"))
    noted = dataclasses.replace(made.facts, extra={"updates": updates})
    save_single_file(tmp_path / "adapter.safetensors", dataclasses.replace(made, facts=noted))
    assert trials._is_finished(tmp_path, 4) is is_finished


def test_another_setting_is_another_run():
    one = Trial("x", "rank", TrainConfig(rank=4, output="a"))
    assert one.key == dataclasses.replace(one, config=TrainConfig(rank=4, output="b", threads=2)).key
    assert one.key != dataclasses.replace(one, config=TrainConfig(rank=5)).key


def test_a_mistake_is_one_sentence(place, capsys):
    assert main(arguments(place, "--base", str(place / "nowhere"))) == 2
    assert "error:" in capsys.readouterr().err
