"""L2D's committed training config holds, and its evidence is what it says."""

from __future__ import annotations

import json

import bench_on_path  # noqa: F401
from bench_on_path import ROOT

import bench.families.latent_evidence
from bench.report import evidence_table
from bench.results import conditions
from lad_engine.config import SamplingParams
from lad_engine.training.config import TrainConfig
from tiny_checkpoint import make_tiny
from tiny_latent import make_tiny_latent


def test_the_training_config_is_one_and_its_profile_holds():
    config = TrainConfig.load(ROOT / "bench" / "families" / "latent.toml", {})
    assert (config.objective, config.rank, config.profile) == ("latent_ode", 32, "l2d")
    assert SamplingParams(steps=15).solver == "midpoint"


def test_evidence_names_the_base_at_time_zero(tmp_path, monkeypatch):
    model, base = make_tiny_latent(tmp_path / "run" / "model"), make_tiny(tmp_path / "base")
    data, out = tmp_path / "data.jsonl", tmp_path / "evidence.json"
    data.write_text("\n".join(json.dumps({"instruction": f"say {n}", "output": f"the user {n}"}) for n in range(40)))
    config = tmp_path / "run.toml"
    config.write_text('objective = "latent_ode"\nrank = 4\nval_share = 0.3\nmax_length = 160\n')
    arguments = ["--model", str(model), "--base", str(base), "--data", str(data), "--config", str(config), "--out", str(out)]

    def never(*_):
        raise AssertionError("a mask token is asked for, which SmolLM2's tokenizer has not and L2D does not need")

    monkeypatch.setattr("lad_engine.text.codec.TextCodec.piece_id", never)
    # Random modulation makes nothing better but by chance, which the exit status says; the base is the base all the same.
    status = bench.families.latent_evidence.main([*arguments, "--examples", "4", "--answer", "3"])
    (row,) = json.loads(out.read_text())["rows"]
    half, losses, greedy = row["claims"]
    assert status == (0 if half["holds"] else 1) and half["against"] > 0 and not half["is_clear"]
    assert (losses["value"], losses["against"], losses["holds"]) == (4, 4, True)
    assert (greedy["value"], greedy["against"], greedy["holds"]) == (4, 4, True)
    wrong = [f"at t = {time}, against a wrong target" for time in (0.5, 0.9)]
    assert [one["what"] for one in row["beside"]] == ["the same at t = 0.9", *wrong]
    # Another target is another input of the flow path.
    assert all(one["gain"] != 0 for one in row["beside"])
    assert evidence_table({**conditions(), "counted": "", "rows": [row]}).count("(beside)") == 3
