"""The result form, the timer's arithmetic and the target table, on figures made up for the purpose."""

from __future__ import annotations

import json

import pytest
import torch

from bench.results import RESULTS, check_result, make_result, read_results, store
from bench.targets import TARGETS, UNMEASURED, rows_of, table
from bench.timing import MOST_COPIES, copied, copies, interleaved_us, rotating, summary


def timing(us: float) -> dict:
    return summary([us, us * 1.1, us * 0.9], "graph")


def gpu_result(bench: str, rows: list[dict], **more) -> dict:
    return {**make_result(bench, "made up", rows), "device_kind": "cuda", "device": "NVIDIA H200", **more}


STEP_1B = {"model": "Llama-3.2-1B", "canvas": 256, "batch": 1, "precision": "bfloat16", "batch_invariant": False}


def test_a_result_survives_the_disk(tmp_path):
    result = make_result("step", "everything", [{**STEP_1B, "times": {"ours replay": timing(1000.0)}}])
    store(tmp_path / "step.json", result)
    (tmp_path / "other.json").write_text("[1, 2]")
    assert read_results(tmp_path) == [json.loads(json.dumps(result))]
    assert result["rows"][0]["steps"] is None
    assert {"python", "torch", "transformers"} <= set(result["versions"])


def test_an_incomplete_result_is_refused():
    good = make_result("step", "everything", [{"times": {"ours": timing(10.0)}}])
    for name in ("commit", "device", "counted"):
        with pytest.raises(ValueError, match=name):
            check_result({key: value for key, value in good.items() if key != name})
    with pytest.raises(ValueError, match="row 0 lacks batch"):
        check_result({**good, "rows": [{key: value for key, value in good["rows"][0].items() if key != "batch"}]})
    with pytest.raises(ValueError, match="0 < min <= median <= max"):
        make_result("step", "everything", [{"times": {"ours": {**timing(10.0), "min_us": 11.0}}}])
    with pytest.raises(ValueError, match="expected"):
        make_result("step", "everything", [{"times": {"ours": {"median_us": 1.0}}}])


def test_every_committed_result_reads_back():
    assert any(result["bench"] == "step" for result in read_results(RESULTS))


def test_the_timer_reports_median_and_spread():
    times = interleaved_us({"short": lambda: None, "long": lambda: sum(range(20000))}, repeats=5, warm_up=1)
    assert times["long"]["median_us"] > times["short"]["median_us"]
    assert times["short"]["repeats"] == 5
    assert times["long"]["min_us"] <= times["long"]["median_us"] <= times["long"]["max_us"]


def test_inputs_rotate_past_the_cache():
    assert copies(10, 0) == 1
    assert copies(30, 60) == 5
    assert copies(1, 10**9) == MOST_COPIES
    case = {"x": torch.randn(6, 8)[::2], "paths": ((torch.ones(2), 3),), "n": 4}
    again = copied(case)
    assert torch.equal(again["x"], case["x"])
    assert again["x"].stride() == case["x"].stride()
    assert again["x"].data_ptr() != case["x"].data_ptr()
    assert again["paths"][0][0].data_ptr() != case["paths"][0][0].data_ptr()
    assert len(rotating(case, 96, "cpu")) == 1


def test_targets_without_a_gpu_result_are_unmeasured():
    cpu = make_result("step", "everything", [{**STEP_1B, "times": {"ours replay": timing(900.0)}}])
    quick = gpu_result("step", [{**STEP_1B, "times": {"ours replay": timing(900.0)}}], is_quick=True)
    rows = rows_of([cpu, quick])
    assert rows == []
    assert {target.verdict(rows)[1] for target in TARGETS} == {UNMEASURED}
    assert table(rows).count(UNMEASURED) == len(TARGETS)


def test_targets_are_met_missed_and_taken_from_the_latest_run():
    times = {
        "ours replay": timing(1000.0),
        "ours loop": timing(900.0),
        "authors loop": timing(5000.0),
        "transformers compiled": timing(1300.0),
    }
    old = gpu_result("step", [{**STEP_1B, "times": {"ours replay": timing(5000.0)}}], date="2000-01-01")
    new = gpu_result("step", [{**STEP_1B, "times": times}], date="2000-01-02")
    ops = gpu_result(
        "ops",
        [
            {
                "op": "lm_head",
                "case": "top 3",
                "model": "Llama-3.2-1B",
                "batch": 1,
                "answer_rows": 256,
                "dtype": "bfloat16",
                "peer_over_ours": 2.0,
            }
        ],
    )
    decode = gpu_result(
        "decode",
        [{"driver": "loop", "model": "Llama-3.2-1B", "batch": 1, "steps": 16, "answer_rows": 256, "canvas": 256, "host_us": 150.0}],
    )
    verdicts = {target.what: target.verdict(rows_of([old, new, ops, decode], "h200")) for target in TARGETS}
    assert verdicts["denoising step, Llama-3.2-1B, T=256, B=1"] == ("0.9 ms", "met")
    assert verdicts["step against the authors' loop as written, 1B"] == ("5.56 x", "missed")
    assert verdicts["step against transformers compiled, 1B"] == ("1.44 x", "met")
    assert verdicts["head and choice against cuBLAS + topk + softmax + multinomial, R=256, V=128256"] == ("2 x", "met")
    assert verdicts["host time of that decode with the loop graph"] == ("150 us", "missed")
    assert verdicts["denoising step, Llama-3.1-8B, T=512, B=1"] == ("", UNMEASURED)
    assert rows_of([new], "B200") == []
