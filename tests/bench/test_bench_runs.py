"""Every script of the bench runs here at sizes that measure nothing, and the GPU session does so from a shell."""

from __future__ import annotations

import concurrent.futures
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bench_on_path import ROOT

import bench.decode
import bench.ops
import bench.shards
import bench.step
import bench.targets
import bench.tune
from bench.crossover import crossover_steps, crossovers, plot
from bench.op_cases import Setting
from bench.random_model import MODELS
from bench.results import check_result, make_result, store
from bench.timing import stop_if_lost, summary
from bench.tune import choice_of, compile_ahead, compile_one, shapes_of, tiles
from lad_engine.kernels.tile_table import TileTable, read_table, write_table
from lad_engine.ops import OP_NAMES, load_op

SESSION = ROOT / "bench" / "gpu_session.sh"
ON_CPU = pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the session itself runs these")


def run_quick(module, monkeypatch, out: Path, *arguments: str) -> dict:
    monkeypatch.setattr(sys, "argv", [module.__name__, "--quick", "--out", str(out), *arguments])
    module.main()
    result = json.loads(out.read_text())
    check_result(result)
    assert result["is_quick"]
    return result


@ON_CPU
def test_a_step_is_timed_by_every_driver_and_against_every_opponent(monkeypatch, tmp_path):
    result = run_quick(bench.step, monkeypatch, tmp_path / "step.json", "--dtype", "float32", "--repeats", "2")
    (row,) = result["rows"]
    assert set(row["times"]) == {"ours eager", "ours replay", "ours loop", "authors loop", "transformers eager"}
    assert row["refused"] == {}
    assert set(row["ratios"]) == {"authors loop", "transformers eager"}


@ON_CPU
def test_whole_answers_are_timed_and_their_crossover_is_found(monkeypatch, tmp_path):
    result = run_quick(bench.decode, monkeypatch, tmp_path / "decode.json")
    drivers = {(row["driver"], row["steps"]) for row in result["rows"] if row["family"] == "lad"}
    assert drivers == {(driver, steps) for driver in ("eager", "replay", "loop") for steps in (2, 3)}
    (continued,) = (row for row in result["rows"] if row["family"] == "autoregressive")
    assert set(continued["times"]) == {"ours autoregressive", "transformers generate"}
    assert all(not row.get("refused") for row in result["rows"])
    assert len(result["crossovers"]) == 1


@ON_CPU
def test_every_op_is_timed_with_its_floor(monkeypatch, tmp_path):
    names = ("add_rmsnorm", "packed_attention", "lora_linear", "lm_head", "renoise", "update")
    chosen = [name for name in names if name in OP_NAMES]
    result = run_quick(bench.ops, monkeypatch, tmp_path / "ops.json", "--ops", *chosen)
    assert {row["op"] for row in result["rows"]} == set(chosen)
    assert all(row["floor_us"] > 0 and row["refused"] == {} for row in result["rows"])


@ON_CPU
def test_tuning_times_what_has_a_choice_and_writes_no_table_without_a_gpu(monkeypatch, tmp_path):
    result = run_quick(bench.tune, monkeypatch, tmp_path / "tune.json", "--tables", str(tmp_path / "tables"))
    assert {row["op"] for row in result["rows"]} == {name for name in OP_NAMES if load_op(name).shape is not None}
    assert not (tmp_path / "tables").exists()


def test_the_fastest_tile_goes_into_the_table_and_comes_back(tmp_path):
    shape = ({"D": 64, "F": 128, "dtype": "bfloat16"}, {"rows": 256})
    tile = {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 32, "num_warps": 4, "num_stages": 3}

    def timed(formula: float, other: float, library: float) -> list[dict]:
        return [
            {"backend": "triton", "config": {}, "us": formula},
            {"backend": "triton", "config": tile, "us": other},
            {"backend": "cublas", "config": {}, "us": library},
        ]

    clear = choice_of(shape, timed(10.0, 8.0, 9.0))
    assert (clear.backend, clear.config, clear.us) == ("triton", tile, {"triton": 8.0, "cublas": 9.0})
    assert choice_of(shape, timed(10.0, 9.9, 11.0)).config == {}
    assert choice_of(shape, timed(10.0, 8.0, 7.0)).backend == "cublas"
    assert choice_of(shape, []) is None
    path = write_table(TileTable("NVIDIA H200", {"gate_up": (clear,)}, {"commit": "abc"}), tmp_path)
    assert read_table(path).find("gate_up", *shape) == clear


def test_every_listed_tile_is_one_its_kernel_takes():
    pytest.importorskip("triton")
    for name in (name for name in OP_NAMES if load_op(name).shape is not None):
        op = load_op(name)
        for case in op.cases("cpu", torch.float32)[:2]:
            for config in tiles(name, "triton", case, 90):
                assert callable(op.configured("triton", config))


def test_the_crossover_is_where_the_lines_meet(tmp_path):
    assert crossover_steps({8: 900.0, 16: 1700.0, 32: 3300.0}, 5100.0) == pytest.approx(50.0)
    assert crossover_steps({8: 900.0}, 5100.0) is None
    assert crossover_steps({8: 900.0, 16: 800.0}, 5100.0) is None

    def row(family: str, name: str, steps: int, us: float) -> dict:
        return {"family": family, "model": "m", "batch": 1, "canvas": 256, "steps": steps, "times": {name: summary([us], "wall")}}

    rows = [row("lad", "ours loop", steps, 100.0 * steps + 100.0) for steps in (8, 16)]
    rows += [row("lad", "ours eager", 8, 9e9), row("autoregressive", "ours", 256, 2100.0), row("autoregressive", "generate", 256, 9e5)]
    (found,) = crossovers(rows)
    assert (found["against"], found["crossover_steps"]) == ("ours", pytest.approx(20.0))
    pytest.importorskip("matplotlib")
    assert plot(rows, tmp_path / "crossover.png").stat().st_size > 1000


def test_the_shapes_of_the_targets_are_tuned_first_and_none_twice():
    shapes = shapes_of(["Llama-3.1-8B", "SmolLM2-135M"])
    assert shapes[:2] == [("Llama-3.1-8B", 1, 512), ("SmolLM2-135M", 1, 256)]
    assert len(set(shapes)) == len(shapes) == 2 * 4 * 4


@ON_CPU
def test_tiles_are_called_ahead_and_a_refusal_is_kept_for_the_timing(capsys):
    at = Setting(MODELS["tiny"], 1, 32, 16, torch.float32, "cpu")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        compile_ahead(pool, ("gate_up", "lm_head"), at, 90)
    assert capsys.readouterr().out == ""
    assert compile_one(at, "gate_up", "", "cpu", {}) == ""
    assert compile_one(at, "gate_up", "", "cpu", {"BLOCK_M": 1}).startswith("ValueError: gate_up=cpu")


def test_a_part_ends_where_the_gpu_is_lost(monkeypatch):
    def broken():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    stop_if_lost("here")
    monkeypatch.setattr("bench.timing.synchronise", broken)
    with pytest.raises(SystemExit, match=r"gate_up: the GPU answers no further call \(CUDA error"):
        stop_if_lost("gate_up")


def test_every_target_takes_its_figure_from_the_row_it_names(tmp_path, monkeypatch):
    """A figure per target, among rows that differ from its own in one field each."""

    def step(ours: float, model="Llama-3.2-1B", canvas=256, **changes) -> dict:
        times = {"ours replay": ours, "authors loop": 6 * ours, "transformers compiled": 2 * ours}
        row = {"model": model, "canvas": canvas, "batch": 1, "precision": "bfloat16", "batch_invariant": False, **changes}
        return {**row, "times": {name: summary([us], "events") for name, us in times.items()}}

    def decode(driver: str, model="Llama-3.2-1B", **changes) -> dict:
        row = {"driver": driver, "model": model, "batch": 1, "steps": 16, "answer_rows": 256, "canvas": 256, "positions_per_s": 2e4}
        return {**row, "host_us": 50.0, "streaming_slowdown_percent": 1.0, "share_of_bandwidth": 0.8, "times": {}, **changes}

    head = {"op": "lm_head", "model": "Llama-3.2-1B", "case": "top 3", "batch": 1, "answer_rows": 256, "dtype": "bfloat16", "times": {}}
    eight = {"model": "Llama-3.1-8B", "canvas": 512}
    rows = {
        "step": [
            step(9e4, batch_invariant=True),
            step(1e3),
            step(1e4, **eight),
            step(6e3, **eight, precision="fp8"),
            step(400.0, model="SmolLM2-135M"),
            step(9e4, model="Llama-3.1-8B", canvas=2048, batch=8, beyond_weights_gb=2.5),
        ],
        "ops": [{**head, "case": "top 1", "peer_over_ours": 9.0}, {**head, "peer_over_ours": 1.7}],
        "decode": [
            *(decode("loop", canvas=canvas) for canvas in (256, 320)),
            decode("replay"),
            *(decode("autoregressive", model, steps=256) for model in ("Llama-3.2-1B", "Llama-3.1-8B")),
        ],
    }
    for bench_name, own in rows.items():
        store(tmp_path / f"{bench_name}.json", {**make_result(bench_name, "a test", own), "device_kind": "cuda"})
    found = bench.targets.rows_of(bench.targets.read_results(tmp_path))
    figures = [target.verdict(found) for target in bench.targets.TARGETS]
    assert [verdict for _, verdict in figures] == ["met"] * len(bench.targets.TARGETS)
    assert [figure for figure, _ in figures[:5]] == ["1 ms", "10 ms", "6 ms", "0.4 ms", "6 x"]


def test_tests_are_dealt_out_to_processes_and_what_fails_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_three.py").write_text(
        "import pytest\n\n@pytest.mark.parametrize('n', [1, 2, 3])\ndef test_small(n):\n    assert n < 3\n"
    )
    arguments = ["-q", "-p", "no:cacheprovider", "test_three.py"]
    assert bench.shards.run(arguments, 2, tmp_path / "logs") == 1
    told = capsys.readouterr().out
    assert told.startswith("3 tests in 2 processes") and "FAILED" in told and "test_small[3]" in told and "1 passed" in told
    assert bench.shards.run([*arguments, "-k", "not 3"], 2, tmp_path / "logs") == 0
    assert bench.shards.run([*arguments, "-k", "nothing"], 2, tmp_path / "logs") == 1
    assert "nothing was collected" in capsys.readouterr().out


def test_the_session_script_is_sound_bash():
    assert subprocess.run(["bash", "-n", str(SESSION)], check=False).returncode == 0


@ON_CPU
def test_a_session_goes_on_after_a_part_it_does_not_know(tmp_path):
    environment = {**os.environ, "LAD_BENCH_QUICK": "1", "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    command = ["bash", str(SESSION), str(tmp_path / "out"), "nonsense", "first_contact", "targets"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "failed: nonsense (unknown)" in done.stdout
    result = json.loads((tmp_path / "out" / "first_contact_cpu.json").read_text())
    assert {row["section"] for row in result["rows"]} >= {"roofs", "gap", "gemm", "attention", "sampling"}
    assert not [row for row in result["rows"] if "failed" in row]
    assert "unmeasured" in done.stdout
