"""The command line on tiny checkpoints of every masked layout: answers, steps, traces, infills, batches, and foreign options by name."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from bench_on_path import ROOT
from tiny_families import FAMILIES, make_family

from lad_engine import generate


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("families")
    return {name: str(make_family(root / name, name)) for name in FAMILIES}


def run(model, *argv):
    return generate.main([*map(str, argv), "--model", model, "--device", "cpu"])


@pytest.mark.parametrize("name", FAMILIES)
def test_every_layout_answers_streams_and_records(models, name, tmp_path, capsys):
    trace = tmp_path / "trace.jsonl"
    request = ("the user", "--steps", 4, "--max-new-tokens", 12, "--seed", 3, "--json", "--show-steps", "--trace", trace)
    assert run(models[name], *request) == 0
    out, err = capsys.readouterr()
    record = json.loads(out)
    assert len(record["token_ids"]) == 12 and record["adapter"] is None
    steps = [line for line in map(json.loads, trace.read_text().splitlines()) if line["type"] == "step"]
    assert len(steps) == record["nfe"] == err.count("step ") and steps[-1]["token_ids"] == record["token_ids"]
    assert generate.main(["--replay", str(trace), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == record


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        (("--remasking", "random"), "remasking"),
        (("--noise-start", 0.3), "noise_start"),
        (("--retention", "locked"), "retention"),
        (("--permanent-unmask",), "permanent_unmask"),
        (("--cluster-size", 0.2), "cluster_size"),
        (("--tokens-per-step", 3), "tokens_per_step"),
    ],
)
def test_options_of_another_family_are_refused_by_name(models, argv, name, capsys):
    assert run(models["dream"], "a", *argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith(f"error: {name} is given, but this checkpoint decodes as masked, which does not read it")


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (
            ("--threshold", 0.9),
            "threshold is 0.9, expected it only with remasking or reveal transfer by confidence, or",
        ),
        (("--block-length", 4), "block_length is 4, expected it only with"),
        (("--reveal", "guess"), "reveal is 'guess', expected one of random, confidence, origin"),
        (("--reveal", "transfer", "--block-length", 4, "--steps", 2, "--max-new-tokens", 12), "expected at least 3, one per block"),
        (("--profile", "retain"), "does not read it"),
        (("--draft", "the user", "--max-new-tokens", 9), "no position is hidden"),
        (("--autoregressive",), "autoregressive: this checkpoint decodes as masked, expected a causal base"),
        (("--max-new-tokens", 300), "expected at most 256 (the model's window)"),
    ],
)
def test_what_does_not_hold_together_is_one_sentence(models, argv, sentence, capsys):
    assert run(models["diffugpt"], "a", *argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and sentence in err


def test_gaps_are_filled_and_nothing_but_a_gap_is_written_freely(models, capsys):
    assert run(models["diffullama"], "--infill", "the [[3]] user is [[2]] on", "--steps", 2) == 0
    answer = capsys.readouterr().out
    assert answer.startswith("the") and " user is" in answer and answer.rstrip("\n").endswith(" on")
    assert run(models["diffugpt"], "--infill", "[[16]]", "--steps", 4, "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["token_ids"]) == 16


def test_lladas_and_dreams_options_decode(models, capsys):
    for options in (("--threshold", 0.4), ("--factor", 2), ("--selection", "random"), ("--block-length", 8), ("--cfg-scale", 1)):
        assert run(models["llada"], "the user", "--max-new-tokens", 24, "--steps", 12, *options) == 0
    for rule in ("origin", "maskgit_plus", "topk_margin", "entropy"):
        assert run(models["dream"], "the user", "--max-new-tokens", 12, "--steps", 4, "--reveal", rule) == 0
    assert run(models["dream"], "a", "--max-new-tokens", 8, "--steps", 4, "--reveal-temperature", 0.5, "--time-floor", 0.01) == 0


def test_the_documented_script_makes_them_all(tmp_path):
    script = ROOT / "tests" / "tiny_families.py"
    done = subprocess.run([sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(tmp_path / name) for name in FAMILIES]
