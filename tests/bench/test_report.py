"""The README's tables are what the committed results give; scaling and CPU targets are measured, fitted and shown."""

from __future__ import annotations

import copy
import json
import sys

import pytest
import torch

import bench.cpu
import bench.report
import bench.scaling
from bench.quality_tables import verdict
from bench.report import BEGIN, END, README, TABLES, measured, published, replaced
from bench.results import RESULTS, check_result, make_result
from bench.scaling import exponent, exponents
from bench.timing import summary

ON_CPU = pytest.mark.skipif(torch.cuda.is_available(), reason="sizes for a CPU")


def run_quick(module, monkeypatch, out):
    monkeypatch.setattr(sys, "argv", [module.__name__, "--quick", "--out", str(out)])
    module.main()
    result = json.loads(out.read_text())
    check_result(result)
    return result


def test_the_readme_shows_the_committed_results():
    text = README.read_text(encoding="utf-8")
    assert text == replaced(text, published(RESULTS)), "run python -m bench.report and commit the README"


def test_a_readme_whose_figures_differ_is_stale(tmp_path, monkeypatch):
    readme = tmp_path / "README.md"
    readme.write_text(f"# x\n{BEGIN}\nold\n{END}\nbehind\n")
    result = make_result(
        "step", "everything", [{"model": "m", "batch": 1, "canvas": 64, "answer_rows": 8, "times": {"ours": summary([2e3], "wall")}}]
    )
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "step.json").write_text(json.dumps(result))
    arguments = ["report", "--results", str(folder), "--readme", str(readme)]
    monkeypatch.setattr(sys, "argv", [*arguments, "--check"])
    with pytest.raises(SystemExit, match="stale"):
        bench.report.main()
    assert "old" in readme.read_text()
    monkeypatch.setattr(sys, "argv", arguments)
    bench.report.main()
    text = readme.read_text()
    assert "2.0 ms" in text
    assert text.endswith(f"{END}\nbehind\n")
    monkeypatch.setattr(sys, "argv", [*arguments, "--check"])
    bench.report.main()
    (folder / "step.json").write_text(json.dumps({**result, "rows": [{**result["rows"][0], "times": {"ours": summary([3e3], "wall")}}]}))
    with pytest.raises(SystemExit, match="stale"):
        bench.report.main()


def test_a_readme_without_markers_is_refused():
    with pytest.raises(ValueError, match="lacks"):
        replaced("# x\n", "tables")


def test_figures_of_dry_runs_are_not_shown():
    result = make_result("step", "everything", [{"model": "m", "times": {"ours": summary([2e3], "wall")}}], is_quick=True)
    assert measured([result]) == "Nothing has been measured yet."


def test_exponents_are_slopes_in_logarithms():
    assert exponent({128: 10.0, 256: 40.0, 512: 160.0}) == pytest.approx(2.0)
    assert exponent({128: 10.0}) is None
    rows = [
        {"model": "m", "axis": "batch", "batch": size, "floor_us": 7.0, "times": {"ours": summary([3.0 * size], "wall")}}
        for size in (1, 2, 8)
    ]
    (found,) = exponents(rows)
    assert found["exponent"] == pytest.approx(1.0)
    assert found["exponent_of_floor"] == pytest.approx(0.0)


@ON_CPU
def test_scaling_is_measured_along_every_axis_and_shown(monkeypatch, tmp_path):
    result = run_quick(bench.scaling, monkeypatch, tmp_path / "scaling.json")
    assert [(row["axis"], row[row["axis"]]) for row in result["rows"]] == [
        ("canvas", 32), ("canvas", 64), ("batch", 1), ("batch", 2), ("steps", 2), ("steps", 3)
    ]  # fmt: skip
    assert {fit["axis"] for fit in result["exponents"]} == {"canvas", "batch", "steps"}
    table = TABLES["scaling"](result)
    assert table.count("| tiny |") == 6
    assert "time grows as canvas^" in table
    pytest.importorskip("matplotlib")
    assert (tmp_path / "scaling.png").stat().st_size > 1000


@ON_CPU
def test_cpu_targets_are_measured_in_turns_and_judged(monkeypatch, tmp_path):
    pytest.importorskip("lad_engine._cpu", reason="the C++ extension is not built here")
    result = run_quick(bench.cpu, monkeypatch, tmp_path / "cpu.json")
    assert {row["part"] for row in result["rows"]} == {"step", "head", "update", "answer", "generate"}
    step = next(row for row in result["rows"] if row["part"] == "step")
    assert set(step["times"]) == {"ours fp32", "ours bf16", "ours int8", "transformers fp32", "transformers bf16"}
    judged = copy.deepcopy(result)
    for row in judged["rows"]:
        row["ratios"] = dict.fromkeys(row["ratios"], 4.5)
    table = TABLES["cpu"](judged)
    assert "| step in bf16 against transformers fp32 eager | ≥ 5 x | 4.50 x | missed |" in table
    assert "| step in int8 against transformers bf16 eager | ≥ 2 x | 4.50 x | met |" in table
    assert "unmeasured" not in table


def test_evaluations_are_shown_beside_their_base(tmp_path):
    def record(task, condition, examples, **metrics):
        return {"task": task, "condition": condition, "examples": examples, "metrics": metrics}

    def figure(value, low, high):
        return {"value": value, "low": low, "high": high}

    found = {
        "command": "python -m lad_engine.evaluate --tasks x",
        "versions": {"torch": "2"},
        "conditions": [
            record("piqa", "mine", 200, accuracy=figure(0.5, 0.4, 0.6), answered=figure(1.0, 0.9, 1.0)),
            record("piqa", "base, greedy", 200, accuracy=figure(0.7, 0.65, 0.75)),
            record("rocstories", "mine", 200, rouge_l=figure(0.3, 0.28, 0.32)),
            record("rocstories", "base, greedy", 200, rouge_l=figure(0.3, 0.28, 0.32)),
            record("mmlu", "mine", 20, accuracy=figure(0.5, 0.4, 0.6)),
            record("open", "re-noising, 8 steps", 20, perplexity=figure(33.3, 20.0, 40.0), distinct_2=figure(0.9, 0.8, 1.0)),
        ],
    }
    (tmp_path / "quality").mkdir()
    (tmp_path / "quality" / "own.json").write_text(json.dumps(found))
    text = published(tmp_path)
    assert "| piqa | accuracy | 200 | 0.500 [0.400, 0.600] | 0.700 [0.650, 0.750] | behind |" in text
    assert "| rocstories | ROUGE-L | 200 | 0.300 [0.280, 0.320] | 0.300 [0.280, 0.320] | no clear difference |" in text
    assert "| re-noising, 8 steps | 20 | 33.3 [20.0, 40.0] | 0.900 [0.800, 1.000] |  |  |" in text
    assert "mmlu" not in text and found["command"] in text


def test_intervals_that_overlap_do_not_mean_that_there_is_no_difference(tmp_path):
    def figure(value, low, high):
        return {"value": value, "low": low, "high": high}

    # 80 and 107 right of 200: independent, the difference is more than two of its standard errors.
    ours, theirs = figure(0.4, 0.335, 0.469), figure(0.535, 0.466, 0.603)
    assert ours["high"] > theirs["low"]
    assert verdict(ours, theirs) == "behind" and verdict(theirs, ours) == "ahead"
    assert verdict(ours, figure(0.45, 0.383, 0.519)) == "no clear difference"
    # What the same questions say, where it is known, goes before that.
    assert verdict(ours, figure(0.45, 0.383, 0.519), figure(-0.05, -0.09, -0.01)) == "behind"
    piqa = {"task": "piqa", "examples": 200}
    mine = {**piqa, "condition": "mine", "metrics": {"accuracy": ours}}
    mine["difference"] = {"from": "base, greedy", "metrics": {"accuracy": figure(-0.05, -0.09, -0.01)}}
    greedy = {**piqa, "condition": "base, greedy", "metrics": {"accuracy": figure(0.45, 0.383, 0.519)}}
    (tmp_path / "quality").mkdir()
    found = {"command": "x", "versions": {}, "conditions": [mine, greedy]}
    (tmp_path / "quality" / "own.json").write_text(json.dumps(found))
    assert "| 0.450 [0.383, 0.519] | behind |" in published(tmp_path)
