"""The bench of L2D runs and walks the transcription's path; the committed training config holds; the evidence is what it says."""

from __future__ import annotations

import json
import sys

import bench_on_path  # noqa: F401
import pytest
from bench_on_path import ROOT

import bench.families.decode
import bench.families.latent_evidence
from lad_engine.config import SamplingParams
from lad_engine.training.config import TrainConfig
from tiny_checkpoint import make_tiny
from tiny_latent import make_tiny_latent


def test_the_bench_times_both_and_both_make_the_same_tokens(monkeypatch, tmp_path):
    out = tmp_path / "latent.json"
    monkeypatch.setattr(sys, "argv", ["bench.families.decode", "--families", "latent_ode", "--quick", "--out", str(out)])
    bench.families.decode.main()
    (row,) = json.loads(out.read_text())["rows"]
    assert row["same_tokens"] and row["head_rows_per_step"] == 15 and row["nfe"] == row["transcription"]["nfe"] == 3 * 15
    assert row["ratios"]["transcription"] == pytest.approx(row["times"]["transcription"]["median_us"] / row["times"]["ours"]["median_us"])


def test_the_training_config_is_one_and_its_profile_holds():
    config = TrainConfig.load(ROOT / "bench" / "families" / "latent.toml", {})
    assert (config.objective, config.rank, config.profile) == ("latent_ode", 32, "l2d")
    assert SamplingParams(steps=15).solver == "midpoint"


def test_evidence_names_the_base_at_time_zero(monkeypatch, tmp_path, capsys):
    model, base = make_tiny_latent(tmp_path / "model"), make_tiny(tmp_path / "base")
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(json.dumps({"instruction": f"say {n}", "output": "the user"}) for n in range(40)))
    arguments = ["--model", str(model), "--base", str(base), "--data", str(data), "--examples", "4", "--answer", "3", "--out"]
    config = tmp_path / "run.toml"
    config.write_text('objective = "latent_ode"\nrank = 4\nval_share = 0.3\nmax_length = 160\n')
    monkeypatch.setattr(sys, "argv", ["evidence", *arguments, str(tmp_path / "evidence.json"), "--config", str(config)])
    # Random modulation makes nothing better, which the exit code says; the base is the base all the same.
    assert bench.families.latent_evidence.main() == 1
    row = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert row["equal"] == row["prompts"] == 4 and not row["is_shown"]
    assert row["loss_t0"] > 0 and row["loss_t50"] > row["loss_t0"] - 1.0
