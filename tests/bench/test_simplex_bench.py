"""Simplex decoding: its peak memory is measured, its training config is one, and its evidence says what it claims."""

from __future__ import annotations

import json
import mmap
import sys

import pytest
from bench_on_path import ROOT

from bench.families.simplex_evidence import main
from bench.families.simplex_row import peak_mib
from lad_engine.train import main as train
from lad_engine.training.config import TrainConfig
from tiny_checkpoint import make_tiny


@pytest.mark.skipif(sys.platform != "linux", reason="reads the process's own peak from /proc")
def test_the_peak_is_what_a_call_takes_and_gives_back():
    def takes() -> None:
        # Pages of its own: the heap may hold as much from earlier tests, and a call that finds it there takes nothing.
        with mmap.mmap(-1, 64 * 2**20) as pages:
            for at in range(0, len(pages), mmap.PAGESIZE):
                pages[at] = 1

    assert peak_mib(takes, "cpu") == pytest.approx(64, abs=8)


def test_the_committed_config_is_a_simplex_run():
    config = TrainConfig.load(ROOT / "bench" / "families" / "simplex.toml", {})
    assert (config.objective, config.profile, config.predicts_next_token) == ("simplex", "tess2", True)


def test_the_evidence_runs_and_its_exit_status_is_that_of_both_claims(tmp_path):
    make_tiny(tmp_path / "base")
    words = ("user", "in", "an", "other")
    rows = [{"instruction": f"{word} {number}", "output": f"the {word} {number}"} for word in words for number in range(6)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "run.toml").write_text(
        f'base = "{tmp_path}/base"\ndata = ["{tmp_path}/data.jsonl"]\noutput = "{tmp_path}/run"\nobjective = "simplex"\n'
        "predicts_next_token = true\nmax_length = 72\nrank = 4\nsteps = 12\nbatch_size = 4\nwarmup_steps = 2\nlearning_rate = 0.01\n"
        'val_share = 0.3\nval_examples = 4\ndevice = "cpu"\nplot = false\n'
    )
    assert train(["--config", str(tmp_path / "run.toml"), "--quiet"]) == 0
    out = tmp_path / "evidence.json"
    asked = ["--adapter", str(tmp_path / "run" / "adapter.safetensors"), "--config", str(tmp_path / "run.toml"), "--out", str(out)]
    done = main([*asked, "--questions", "3", "--examples", "4", "--steps", "10", "--tokens", "4"])
    (row,) = json.loads(out.read_text())["rows"]
    loss, fluency = row["claims"]
    assert loss["holds"] and "after pass 10, against after pass 1" in fluency["what"]
    assert done == (0 if loss["holds"] and fluency["holds"] else 1)
    assert len(row["samples"]) == 3 and set(row["fluency"]) == {"last_pass", "early_pass", "short_decode"}
    # The validation loss of the run itself falls with the evidence's.
    measured = [line["val_loss"] for line in row["curve"] if "val_loss" in line]
    assert measured[-1] < measured[0]
