"""Backends are chosen once; what was asked for by name runs or raises, and only "auto" steps down, saying so once."""

from __future__ import annotations

import dataclasses
import logging

import pytest

from lad_engine import ops
from lad_engine.errors import OpsError
from lad_engine.kernels.op import Op
from lad_engine.ops import BACKENDS, OP_NAMES, load_op, select_ops


@pytest.fixture(autouse=True)
def _no_variable(monkeypatch):
    monkeypatch.delenv("LAD_OPS", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


@pytest.fixture
def no_extension(monkeypatch):
    """As on a machine without a compiler: the files that need the extension fail to import."""
    original = Op.implementation

    def implementation(op: Op, backend: str):
        if backend == "cpu":
            raise ImportError("No module named 'lad_engine._cpu'")
        return original(op, backend)

    monkeypatch.setattr(Op, "implementation", implementation)
    ops._warn_once.cache_clear()
    yield
    ops._warn_once.cache_clear()


def test_reference_is_the_reference_for_every_op():
    chosen = select_ops("reference")
    assert set(chosen.chosen) == set(OP_NAMES)
    for name in OP_NAMES:
        assert getattr(chosen, load_op(name).function) is load_op(name).reference
        assert chosen.chosen[name] == "reference"


def test_every_field_is_a_function_and_every_op_has_a_reason():
    chosen = select_ops("auto", "cpu")
    functions = [field.name for field in dataclasses.fields(chosen) if field.name not in ("chosen", "why")]
    assert len(functions) == len(OP_NAMES)
    assert all(callable(getattr(chosen, name)) for name in functions)
    assert all(chosen.why[name] for name in OP_NAMES)
    assert all(name in chosen.table() for name in OP_NAMES)
    with pytest.raises(dataclasses.FrozenInstanceError):
        chosen.attention = None


def test_the_fastest_backend_of_the_device_is_chosen_by_auto():
    pytest.importorskip("lad_engine._cpu", reason="the C++ extension is not built here")
    assert select_ops("auto", "cpu").chosen["renoise"] == "cpu"
    assert select_ops("auto", "cpu").chosen["random"] == "cpu"


def test_a_device_without_kernels_gets_references():
    assert set(select_ops("auto", "meta").chosen.values()) == {"reference"}


def test_one_op_is_overridden_in_the_list_or_in_the_mapping():
    assert select_ops("auto,renoise=reference").chosen["renoise"] == "reference"
    chosen = select_ops("renoise=auto", overrides={"renoise": "reference"})
    assert chosen.chosen["renoise"] == "reference"
    assert chosen.why["renoise"] == "asked for"


def test_a_backend_for_all_leaves_the_reference_where_there_is_no_such_file():
    pytest.importorskip("lad_engine._cpu", reason="the C++ extension is not built here")
    chosen = select_ops("cpu")
    for name in OP_NAMES:
        assert chosen.chosen[name] == ("cpu" if "cpu" in load_op(name).backends else "reference")


def test_the_variable_replaces_auto_only(monkeypatch):
    monkeypatch.setenv("LAD_OPS", "reference")
    assert set(select_ops("auto").chosen.values()) == {"reference"}
    monkeypatch.setenv("LAD_OPS", "nonsense")
    assert set(select_ops("reference").chosen.values()) == {"reference"}
    with pytest.raises(OpsError, match="nonsense"):
        select_ops("auto")


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ("metal", ["'metal'", *BACKENDS]),
        ("atention=reference", ["'atention'", "attention"]),
        ("attention=metal", ["'metal'", "reference"]),
        ("renoise=sdpa", ["renoise=sdpa"]),
    ],
)
def test_a_wrong_name_is_refused_with_the_accepted_ones(choice, words):
    with pytest.raises(OpsError) as caught:
        select_ops(choice)
    assert all(word in str(caught.value) for word in words)


def test_a_backend_that_no_op_has_is_refused(monkeypatch):
    monkeypatch.setattr("lad_engine.ops.BACKENDS", (*BACKENDS, "metal"))
    with pytest.raises(OpsError, match="no op has a metal backend, expected one of auto, reference, cpu, sdpa"):
        select_ops("metal")


def test_a_backend_of_another_device_is_refused():
    with pytest.raises(OpsError, match=r"renoise=cpu: device is cuda, expected cpu\."):
        select_ops("renoise=cpu", "cuda:0")


def test_triton_on_a_cpu_is_for_tests_and_only_by_name(monkeypatch):
    pytest.importorskip("triton")
    with pytest.raises(OpsError, match=r"triton: device is cpu, expected cuda\."):
        select_ops("triton", "cpu")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "triton" not in select_ops("auto", "cpu").chosen.values()
    assert select_ops("triton", "cpu").chosen["swiglu"] == "triton"


def test_a_gpu_gets_our_kernels_but_keeps_the_librarys_attention():
    pytest.importorskip("triton")
    chosen = select_ops("auto", "cuda").chosen
    assert {name: chosen[name] for name in ("attention", "add_rmsnorm", "rotary", "swiglu")} == {
        "attention": "sdpa", "add_rmsnorm": "triton", "rotary": "triton", "swiglu": "triton",
    }  # fmt: skip
    assert select_ops("attention=triton", "cuda").chosen["attention"] == "triton"


@pytest.mark.usefixtures("no_extension")
def test_without_the_extension_auto_steps_down_and_says_so_once(caplog):
    with caplog.at_level(logging.WARNING, "lad_engine"):
        chosen = select_ops("auto")
        select_ops("auto")
    assert "cpu" not in chosen.chosen.values()
    assert len(caplog.records) == 1
    message = caplog.records[0].getMessage()
    assert "renoise" in message and "random" in message and "not built" in message and "compiler" in message


@pytest.mark.usefixtures("no_extension")
def test_without_the_extension_asking_for_it_raises():
    with pytest.raises(OpsError, match=r"renoise=cpu: the C\+\+ extension is not built"):
        select_ops("renoise=cpu")
    with pytest.raises(OpsError, match="not built"):
        select_ops("cpu")
