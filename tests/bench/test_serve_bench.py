"""What batching brings is measured by clients in another process, in turns; a missed target is said."""

from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("uvicorn", reason="needs the extra serve")
pytest.importorskip("httpx", reason="needs the extra test")

from bench.report import measured
from bench.results import make_result
from bench.serve import LENGTHS, job, measure, missed
from lad_engine import Engine
from tiny_checkpoint import make_tiny


def test_every_mix_is_asked_by_every_number_of_clients(tmp_path):
    engine = Engine.load(make_tiny(tmp_path, tie=True), adapter=None, device="cpu", dtype="float32", threads=1)
    found = asyncio.run(measure(engine, 12, [1, 4]))
    assert [(row["mix"], row["clients"]) for row in found["rows"]] == [(mix, number) for mix in LENGTHS for number in (1, 4)]
    assert all(row["different"] == 0 and row["requests_per_s"] > 0 for row in found["rows"])
    assert [row["mean_batch"] for row in found["rows"] if row["clients"] == 1] == [1.0, 1.0]
    rows = [{**row, "batch_invariant": True} for row in found["rows"]]
    table = measured([make_result("serve", "all of it", rows, overhead_ms=found["overhead_ms"], missed=["one"])])
    assert "| chat | each row by itself | 4 |" in table and "Missed targets: one." in table


def test_the_requests_of_a_mix_differ():
    for mix in LENGTHS:
        bodies = [job(index, mix)[2] for index in range(12)]
        assert len({body["steps"] for body in bodies}) == 3 and len({body["max_new_tokens"] for body in bodies}) == 4


def test_missed_targets_are_said():
    row = {"clients": 8, "mix": "short", "batch_invariant": False, "speedup": 2.6, "different": 3}
    assert missed([row], 1.0) == []
    assert "2.40 x, expected at least 2.5 x" in missed([{**row, "speedup": 2.4}], 1.0)[0]
    assert missed([{**row, "speedup": 1.0, "mix": "chat"}], 1.0) == []
    assert "0.90 x, expected at least 0.95 x" in missed([{**row, "speedup": 0.9, "batch_invariant": True, "different": 0}], 1.0)[0]
    assert "3 answers differ" in missed([{**row, "batch_invariant": True}], 1.0)[0]
    assert "HTTP adds 6.00 ms" in missed([row], 6.0)[0]
