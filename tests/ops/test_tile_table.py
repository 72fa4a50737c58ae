"""Measured choices are read, checked, found by the nearest shape, and decide what a GPU computes with; nothing is guessed from afar."""

from __future__ import annotations

import importlib
import inspect
import json

import pytest
import torch

from bench.tune import tiles
from lad_engine import ops
from lad_engine.errors import OpsError
from lad_engine.kernels.packed_attention import OP
from lad_engine.kernels.packed_attention.cases import cases
from lad_engine.kernels.tile_table import FOLDER, Choice, TileTable, by_model, by_shape, read_table, table_for, table_path, write_table
from lad_engine.ops import INVARIANT_FOR, load_op, rows_stand_alone, select_ops

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


@pytest.mark.parametrize("name", ["few_row_linear", "gate_up", "lm_head", "lora_linear", "packed_attention"])
def test_every_case_of_an_op_with_a_choice_can_be_tuned_and_put_in_a_table(name, tmp_path):
    pytest.importorskip("triton")
    op = load_op(name)
    for case in op.cases("cpu", torch.float32):
        (model, size), configs = op.shape(**case), tiles(name, "triton", case, 90)
        assert configs[0] == {}
        row = Choice(model, size, "triton", configs[-1], {"triton": 1.0})
        path = write_table(TileTable("Sample GPU", {name: (row,)}), tmp_path)
        assert callable(by_shape(op, read_table(path), op.reference))


def test_without_a_table_a_gpu_keeps_the_library_where_nothing_is_measured():
    pytest.importorskip("triton")
    chosen = select_ops("auto", "cuda").chosen
    if table_for("cuda") is None:
        assert (chosen["packed_attention"], chosen["gate_up"]) == ("by shape", "cublas")
        assert "triton where lengths are given (not measured), else sdpa" in select_ops("auto", "cuda").why["packed_attention"]


def test_lengths_choose_our_attention_and_their_absence_the_library():
    pytest.importorskip("triton")
    backend, is_wanted, _ = ops.PREFERRED_BY_MODEL["packed_attention", "cuda"]
    assert backend == "triton"
    plain = next(case for case in cases("cpu", torch.bfloat16) if "lengths" not in case)
    given = {**plain, "lengths": torch.tensor([1], dtype=torch.int64)}
    run = by_model(OP, is_wanted, lambda **_: "ours", lambda **_: "the library's")
    assert (run(**given), run(**plain)) == ("ours", "the library's")
    # Without tensor cores ours has nothing to gain, and it takes no wider heads.
    assert run(**{**given, "qkv": given["qkv"].float()}) == "the library's"
    assert run(**{**given, "qkv": given["qkv"].new_zeros(1, 1, 3, 256)}) == "the library's"


def test_in_batch_invariant_mode_every_op_is_fixed_or_row_by_row_or_named_as_neither(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.delenv("LAD_OPS", raising=False)
    chosen = select_ops("auto", "cuda", batch_invariant=True)
    fixed = {name for name, device in INVARIANT_FOR if device == "cuda"}
    assert {name for name in fixed if getattr(chosen, name) is load_op(name).invariant("triton")} == fixed
    # Their launch takes one row or one sequence per program, by a tile that no number of rows goes into.
    alone = {"add_rmsnorm", "rotary", "swiglu", "modulated_norm", "quantise_rows", "rmsnorm_quantise", "swiglu_quantise", "choose_token"}
    alone |= {"renoise", "gaussian_noise", "soft_embedding", "update", "structured_noise", "random"}
    assert fixed | alone | set(ops.FOLLOWS_BATCH) == set(ops.OP_NAMES) and not fixed & alone
    assert all(chosen.chosen[name] == "triton" for name in alone | fixed)
    for name in sorted(alone):
        kernel = importlib.import_module(f"lad_engine.kernels.{name}.triton_kernel")
        parameters = set(inspect.signature(kernel.launch_config).parameters) if hasattr(kernel, "launch_config") else set()
        assert not parameters & {"N", "B", "M", "rows", "batch"}, name
    assert rows_stand_alone(chosen, "cuda:0") and not rows_stand_alone(select_ops("auto", "cpu", batch_invariant=True), "cpu")
    assert not rows_stand_alone(select_ops("gate_up=cublas", "cuda", batch_invariant=True), "cuda")
