"""The profile of a step names every op of it, its parts add up, and the report shows it."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from bench_on_path import ROOT  # noqa: F401 - its import is its effect

import bench.profile_step
from bench.report import TABLES
from bench.results import check_result

ON_CPU = pytest.mark.skipif(torch.cuda.is_available(), reason="sizes for a CPU")


@ON_CPU
def test_the_parts_of_a_step_add_up(monkeypatch, tmp_path):
    out, threads = tmp_path / "profile.json", torch.get_num_threads()
    monkeypatch.setattr(sys, "argv", ["profile", "--quick", "--precisions", "fp32", "int8", "--clock", "process", "--out", str(out)])
    bench.profile_step.main()
    torch.set_num_threads(threads)
    result = json.loads(out.read_text())
    check_result(result)
    for precision, product in (("fp32", "gate_up"), ("int8", "quantised_linear")):
        rows = {(row["op"], row["case"]): row for row in result["rows"] if row["precision"] == precision}
        assert {"step", "between the ops", product, "packed_attention", "update"} <= {op for op, _ in rows}
        # One repeat: the median of the whole is the whole of the parts.
        parts = sum(row["share"] for (op, _), row in rows.items() if op != "step")
        assert parts == pytest.approx(1.0, abs=0.01)
        assert rows[product, "320 x 64"]["calls"] == rows["packed_attention", ""]["calls"] == 2
        assert rows[product, "320 x 64"]["gflop_per_s"] > 0
    table = TABLES["profile"](result)
    assert "packed_attention" in table and "GFLOP/s" in table and "320 x 64" in table
