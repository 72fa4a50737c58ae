"""Measured choices are read, checked, found by the nearest shape, and decide what a GPU computes with; nothing is guessed from afar."""

from __future__ import annotations

import json

import pytest
import torch

from lad_engine import ops
from lad_engine.errors import OpsError
from lad_engine.kernels.packed_attention import OP
from lad_engine.kernels.packed_attention.cases import cases
from lad_engine.kernels.tile_table import FOLDER, Choice, TileTable, by_shape, read_table, table_for, table_path, write_table
from lad_engine.ops import INVARIANT_FOR, load_op, select_ops

MODEL = {"H": 32, "G": 8, "K": 64, "dtype": "bfloat16", "lengths": "none"}


def choice(B: int, T: int, backend: str = "sdpa", **changes) -> Choice:
    return Choice(**{"model": MODEL, "size": {"B": B, "T": T}, "backend": backend, "config": {}, "us": {backend: 1.0}, **changes})


def table(*rows: Choice) -> TileTable:
    return TileTable("Sample GPU 80GB", {"packed_attention": rows}, {"commit": "sample"})


def test_what_is_written_is_read_back_under_the_name_of_the_gpu(tmp_path):
    sample = table(choice(1, 256), choice(8, 512, "triton", config={"BLOCK_M": 64}))
    path = write_table(sample, tmp_path)
    assert path.name == "sample_gpu_80gb.json"
    assert read_table(path) == sample
    assert list(tmp_path.iterdir()) == [path]


def test_the_nearest_measured_size_within_a_factor_of_two_speaks():
    sample = table(choice(1, 256), choice(1, 512), choice(8, 512))
    find = lambda B, T, **model: sample.find("packed_attention", {**MODEL, **model}, {"B": B, "T": T})  # noqa: E731
    assert find(1, 256) is sample.choices["packed_attention"][0]
    assert find(1, 450) is sample.choices["packed_attention"][1]
    assert find(1, 1024) is sample.choices["packed_attention"][1]
    assert find(6, 512) is sample.choices["packed_attention"][2]
    assert find(1, 1025) is None
    assert find(2, 1024) is None
    assert find(1, 256, K=128) is None
    assert sample.find("gate_up", {"D": 64}, {"rows": 4}) is None
    with pytest.raises(ValueError, match="packed_attention is asked for by B, G, H, K, dtype, lengths, expected B, G, H, K, T, dtype"):
        sample.find("packed_attention", MODEL, {"B": 1})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw.update(schema=7), r"schema is 7, expected 1"),
        (lambda raw: raw.pop("gpu"), r"expected schema, gpu, conditions and choices"),
        (lambda raw: raw.update(gpu="Other GPU"), r"gpu is 'Other GPU', expected the file other_gpu\.json"),
        (lambda raw: raw["choices"].update(packed_attention={}), r"packed_attention: choices are dict, expected a list"),
        (lambda raw: raw["choices"]["packed_attention"][1].pop("us"), r"packed_attention, choice 1: its fields are"),
        (lambda raw: raw["choices"]["packed_attention"][0].update(config=3), r"choice 0: config is 3, expected a mapping"),
        (lambda raw: raw["choices"]["packed_attention"][0].update(backend="cuda"), r"backend is 'cuda', expected one of those timed"),
        (lambda raw: raw["choices"]["packed_attention"][0]["size"].update(T=0), r"size T is 0, expected a positive integer"),
        (lambda raw: raw["choices"]["packed_attention"][0]["us"].update(sdpa=-1), r"us sdpa is -1, expected microseconds above 0"),
        (lambda raw: raw["choices"]["packed_attention"][0]["config"].update(BLOCK_M="x"), r"config BLOCK_M is 'x', expected an integer"),
        (lambda raw: raw["choices"]["packed_attention"][0]["model"].pop("K"), r"its choices name 2 kinds of shape, expected one"),
    ],
)
def test_a_table_that_does_not_hold_is_refused_by_place_and_field(tmp_path, change, message):
    path = write_table(table(choice(1, 256), choice(1, 512)), tmp_path)
    raw = json.loads(path.read_text(encoding="utf-8"))
    change(raw)
    path.write_text(json.dumps(raw), encoding="utf-8")
    with pytest.raises(ValueError, match=r"^sample_gpu_80gb\.json") as caught:
        read_table(path)
    assert caught.match(message)
    with pytest.raises(ValueError, match="it is no JSON"):
        path.write_text("{", encoding="utf-8")
        read_table(path)


def test_a_table_that_does_not_hold_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="size T is -1"):
        write_table(table(choice(1, -1)), tmp_path)
    assert not list(tmp_path.iterdir())


def test_every_committed_table_is_sound_and_fits_the_ops():
    for path in FOLDER.glob("*.json"):
        found = read_table(path)
        for op, rows in found.choices.items():
            for row in rows:
                assert load_op(op).configured(row.backend, row.config)


def test_a_machine_without_a_gpu_has_no_table():
    assert table_for("cpu") is None
    assert table_path("NVIDIA H200").name == "nvidia_h200.json"


def test_each_shape_is_computed_as_the_table_says_and_the_rest_as_before():
    small, large = cases("cpu", torch.float32)[:2]
    model, size = OP.shape(**small)
    sample = table(Choice(model, size, "sdpa", {}, {"sdpa": 1.0}))
    calls = []

    def fallback(**case):
        calls.append(OP.shape(**case)[1])
        return OP.reference(**case)

    run = by_shape(OP, sample, fallback)
    torch.testing.assert_close(run(**small), OP.reference(**small))
    assert calls == []
    torch.testing.assert_close(run(**large), OP.reference(**large))
    assert calls == [{"B": 2, "T": 123}]


def test_an_op_with_nothing_to_choose_by_is_refused():
    with pytest.raises(ValueError, match="swiglu has 1 choices, expected none"):
        by_shape(load_op("swiglu"), TileTable("Sample GPU", {"swiglu": (choice(1, 1),)}), print)


def test_a_gpu_with_a_table_chooses_by_shape_unless_told_otherwise(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.delenv("LAD_OPS", raising=False)
    monkeypatch.setattr(ops, "table_for", lambda device: table(choice(1, 256)))
    chosen = select_ops("auto", "cuda")
    assert chosen.chosen["packed_attention"] == "by shape"
    assert "Sample GPU" in chosen.why["packed_attention"]
    assert select_ops("packed_attention=sdpa", "cuda").chosen["packed_attention"] == "sdpa"
    fixed = select_ops("auto", "cuda", batch_invariant=True)
    assert all(fixed.chosen[name] == "triton" for name, _ in INVARIANT_FOR)
    assert fixed.packed_attention is OP.invariant("triton")
    assert select_ops("triton", "cuda", batch_invariant=True).packed_attention is OP.invariant("triton")
    assert select_ops("triton", "cuda").packed_attention is OP.implementation("triton")


def test_a_table_that_names_what_an_op_has_not_is_an_error_of_the_ops(monkeypatch):
    monkeypatch.setattr(ops, "table_for", lambda device: table(choice(1, 256, config={"BLOCK_M": 64})))
    with pytest.raises(OpsError, match=r"the table of Sample GPU 80GB cannot be used \(packed_attention=sdpa: config is"):
        select_ops("auto", "cuda")
    assert select_ops("reference", "cuda").chosen["packed_attention"] == "reference"


def test_without_a_table_a_gpu_keeps_the_library_where_nothing_is_measured():
    pytest.importorskip("triton")
    chosen = select_ops("auto", "cuda").chosen
    if table_for("cuda") is None:
        assert (chosen["packed_attention"], chosen["gate_up"]) == ("sdpa", "cublas")
