"""A pickle is read without running any of it: hostile files are refused by name, and nothing they ask for happens."""

from __future__ import annotations

import itertools
import os
import pickle
import struct
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from pickled_archives import archive, call, glob, mapping, number, program, storage, tensor, text, tuple_of

from lad_engine.adapters.inert_pickle import Record, is_allowed, read_inert
from lad_engine.adapters.legacy import read_state
from lad_engine.adapters.legacy_archive import LegacyArchive, tensor_ref
from lad_engine.errors import AdapterError

FLOATS = {"0": struct.pack("<4f", 1, 2, 3, 4)}
MODULE = glob("torch.nn.modules.linear", "Linear") + b")\x81"


@pytest.fixture(autouse=True)
def _nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # every hostile program below would leave this file behind
    monkeypatch.chdir(tmp_path)
    yield
    assert not (tmp_path / "executed").exists()


class Calls:
    """An object whose pickle calls `function`."""

    def __init__(self, function: Callable, *arguments: object) -> None:
        self.reduced = function, arguments

    def __reduce__(self) -> tuple:
        return self.reduced


def refusal(path: Path) -> str:
    with pytest.raises(AdapterError) as caught, LegacyArchive(path) as opened:
        for ref in read_state(opened).tensors.values():
            opened.load(ref)
    assert "\n" not in str(caught.value)
    return str(caught.value)


HOSTILE = {
    "posix.system": (b"cposix\nsystem\n", "touch executed"),
    "os.system": (b"cos\nsystem\n", "touch executed"),
    "builtins.eval": (b"cbuiltins\neval\n", "open('executed', 'w')"),
    "__builtin__.eval": (b"c__builtin__\neval\n", "open('executed', 'w')"),
    "builtins.__import__": (b"cbuiltins\n__import__\n", "os"),
    "subprocess.Popen": (b"csubprocess\nPopen\n", "true"),
    "runpy.run_path": (b"crunpy\nrun_path\n", "x.py"),
    "torch.load": (b"ctorch\nload\n", "x.pth"),
    "torch.hub.load": (b"ctorch.hub\nload\n", "x"),
    "torch.storage._load_from_bytes": (b"ctorch.storage\n_load_from_bytes\n", "x"),
    "torch._utils._rebuild_wrapper_subclass": (b"ctorch._utils\n_rebuild_wrapper_subclass\n", "x"),
    "functools.partial": (b"cfunctools\npartial\n", "x"),
    "operator.attrgetter": (b"coperator\nattrgetter\n", "__class__"),
    "__main__.Anything": (b"c__main__\nAnything\n", "x"),
    "models.Evil": (b"cmodels\nEvil\n", "x"),
    "peft.tuners.os.system": (b"cpeft.tuners\nos.system\n", "x"),
    "peftx.evil": (b"cpeftx\nevil\n", "x"),
    "transformers.pipeline": (b"ctransformers\npipeline\n", "x"),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("place", ["root", "value of a dict", "argument of a known class", "state of a module", "key", "unused"])
def test_a_global_that_is_not_listed_is_refused_by_name_wherever_it_stands(tmp_path: Path, name: str, place: str) -> None:
    function, argument = HOSTILE[name]
    hostile = call(function, text(argument))
    data = {
        "root": hostile,
        "value of a dict": mapping(weight=tensor(), surprise=hostile),
        "argument of a known class": call(glob("collections", "OrderedDict"), call(glob("peft.peft_model", "PeftModel"), hostile)),
        "state of a module": MODULE + mapping(_parameters=mapping(), _modules=mapping(), hook=hostile) + b"b",
        "key": b"}" + hostile + b"Ns",
        "unused": hostile + b"0" + mapping(weight=tensor()),
    }[place]
    message = refusal(archive(tmp_path / "x.pth", program(data), FLOATS))
    assert name in message and "executed" in message


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("function", [os.system, eval, os.popen, pickle.loads, torch.load, print], ids=lambda f: f.__name__)
def test_objects_with_a_hostile_reduce_are_refused_in_every_protocol(tmp_path: Path, protocol: int, function: Callable) -> None:
    data = pickle.dumps({"weight": Calls(function, "touch executed")}, protocol=protocol)
    assert f"{function.__name__}, expected" in refusal(archive(tmp_path / "x.pth", data))


def test_the_hostile_programs_above_are_real(tmp_path: Path) -> None:
    function, argument = HOSTILE["os.system"]
    pickle.loads(program(call(function, text(argument))))
    assert (tmp_path / "executed").is_file()
    (tmp_path / "executed").unlink()


def test_a_real_torch_file_with_a_hostile_object_is_refused(tmp_path: Path) -> None:
    torch.save(OrderedDict(weight=torch.ones(2), evil=Calls(os.mkdir, str(tmp_path / "made"))), tmp_path / "x.pth")
    assert "mkdir" in refusal(tmp_path / "x.pth")
    assert not (tmp_path / "made").exists()


PEFT_CLASS = glob("peft.utils.peft_types", "PeftType")


@pytest.mark.parametrize(
    "data",
    [
        call(glob("builtins", "getattr"), glob("collections", "OrderedDict"), text("__init__")),
        call(glob("builtins", "getattr"), PEFT_CLASS, text("__class__")),
        call(glob("builtins", "getattr"), PEFT_CLASS, text("a.b")),
        call(glob("builtins", "getattr"), PEFT_CLASS, text("LORA"), text("default")),
        call(glob("builtins", "getattr"), PEFT_CLASS),
        call(glob("builtins", "getattr"), text("x"), text("join")),
        call(glob("builtins", "getattr"), glob("builtins", "getattr"), text("real")),
        # a chain, a private name of an object, a tensor
        call(glob("builtins", "getattr"), call(glob("builtins", "getattr"), PEFT_CLASS, text("LORA")), text("mro")),
        call(glob("builtins", "getattr"), MODULE, text("__dict__")),
        call(glob("builtins", "getattr"), tensor(), text("apply")),
        call(glob("builtins", "getattr"), storage(), text("count")),
    ],
    ids=itertools.count(),
)
def test_getattr_serves_only_for_plain_names_of_known_classes(tmp_path: Path, data: bytes) -> None:
    assert "getattr" in refusal(archive(tmp_path / "x.pth", program(mapping(weight=tensor(), x=data)), FLOATS))


def test_an_enumeration_member_and_a_bound_method_stay_records() -> None:
    for owner in (PEFT_CLASS, MODULE, glob("models", "CustomTransformerModel") + b")\x81"):
        lookup = read_inert(program(call(glob("__builtin__", "getattr"), owner, text("state"))), "x")
        # not the attribute of that name, which a Record does have
        assert isinstance(lookup, Record) and lookup.args[1] == "state"
    called = call(call(glob("builtins", "getattr"), MODULE, text("state")), text("x"))
    with pytest.raises(AdapterError, match="damaged or hostile"):
        read_inert(program(called), "x")


@pytest.mark.parametrize(
    "data",
    [
        # an inert record called: what a REDUCE returns is never a function
        call(call(glob("peft.evil", "loader"), text("touch executed")), text("again")),
        call(text("join"), text("x")),
        call(tensor(), text("x")),
        # BUILD on a class, on a storage, on a container, on a string
        glob("peft.peft_model", "PeftModel") + mapping(origin=text("x")) + b"b",
        glob("peft.peft_model", "PeftModel") + tuple_of(b"N", mapping(__new__=text("x"))) + b"b",
        glob("builtins", "getattr") + tuple_of(b"N", mapping(__new__=glob("builtins", "set"))) + b"b",
        storage() + mapping(count=number(1 << 40)) + b"b",
        storage() + tuple_of(b"N", mapping(count=number(1 << 40))) + b"b",
        b"}" + mapping(__class__=text("x")) + b"b",
        text("x") + mapping(a=text("x")) + b"b",
        # items appended to, or added to, something that has none
        MODULE + b"(" + text("x") + b"e",
        # a persistent object that is not a storage
        text("model.py") + b"Q",
        tuple_of(text("module"), glob("torch", "FloatStorage"), text("source"), text("x"), number(3)) + b"Q",
        tuple_of(text("storage"), glob("torch", "float32"), text("0"), text("cpu"), number(4)) + b"Q",
        tuple_of(text("storage"), glob("torch", "FloatStorage"), text("0"), text("cpu"), number(-4)) + b"Q",
        # extension registry, memo far outside, nothing on the stack, a mark without an end
        b"\x82\x01",
        b"N" + b"r" + struct.pack("<I", 1 << 30),
        b"R",
        b"(((",
    ],
    ids=itertools.count(),
)
def test_pickles_that_bend_the_machine_itself_are_refused(tmp_path: Path, data: bytes) -> None:
    message = refusal(archive(tmp_path / "x.pth", program(mapping(weight=tensor()), b"0", data), FLOATS))
    assert "expected" in message


def test_a_refused_file_leaves_no_trace_in_later_ones(tmp_path: Path) -> None:
    test_pickles_that_bend_the_machine_itself_are_refused(
        tmp_path, glob("collections", "OrderedDict") + tuple_of(b"N", mapping(__setitem__=glob("builtins", "set"))) + b"b"
    )
    torch.save(OrderedDict(weight=torch.ones(2)), tmp_path / "good.pth")
    with LegacyArchive(tmp_path / "good.pth") as opened:
        assert list(read_state(opened).tensors) == ["weight"]


def test_known_classes_become_records_and_are_never_imported() -> None:
    for module in ("transformers.models.evil.modeling_evil", "peft.evil", "torch.nn.modules.evil", "models"):
        name = "CustomTransformerModel" if module == "models" else "Evil"
        record = read_inert(program(call(glob(module, name), text("x")) + mapping(a=number(1)) + b"b"), "x")
        assert isinstance(record, Record) and record.origin == (module, name)
        assert record.args == ("x",) and record.state == {"a": 1}
        assert module not in sys.modules
    assert not is_allowed("torch.nn.modulesx", "Linear") and not is_allowed("models.other", "CustomTransformerModel")


@pytest.mark.parametrize(
    "data",
    [
        tensor(shape=(3, 2)),
        tensor(offset=1),
        tensor(offset=-1),
        tensor(stride=(-2, 1)),
        tensor(shape=(1 << 40,), stride=(0,)),
        tensor(shape=(2,), stride=(2, 1)),
        tensor(shape=(1 << 62, 1 << 62), stride=(1, 1)),
        call(glob("torch._utils", "_rebuild_tensor_v2"), text("x"), number(0), tuple_of(), tuple_of()),
        call(glob("torch._utils", "_rebuild_tensor_v2")),
        # a storage that claims more than the archive holds, a missing one, and one that climbs out of its folder
        tensor(count=5),
        tensor(key="1"),
        tensor(key="../data.pkl"),
        tensor(kind="HalfStorage"),
    ],
    ids=itertools.count(),
)
def test_tensors_outside_their_storage_are_refused(tmp_path: Path, data: bytes) -> None:
    sentence = refusal(archive(tmp_path / "x.pth", program(mapping(weight=data)), FLOATS))
    assert "expected" in sentence and "x.pth" in sentence


def test_what_torch_saved_is_read_bit_for_bit(tmp_path: Path) -> None:
    base = torch.randn(6, 8)
    tensors = {
        "plain": base,
        "turned": base.t(),
        "part": base[1:4, 2:5],
        "half": base.half(),
        "rounded": base.bfloat16(),
        "double": base.double(),
        "whole": torch.arange(5),
        "flags": torch.tensor([True, False]),
        "empty": torch.empty(0, 4),
        "scalar": torch.tensor(3.5),
        "parameter": torch.nn.Parameter(base),
    }
    torch.save(tensors, tmp_path / "x.pt")
    with LegacyArchive(tmp_path / "x.pt") as opened:
        for name, ref in read_state(opened).tensors.items():
            loaded = opened.load(ref)
            assert loaded.dtype == tensors[name].dtype and torch.equal(loaded, tensors[name].detach()) and loaded.is_contiguous()
        assert set(read_state(opened).tensors) == set(tensors)
    assert tensor_ref("x", "x") is None


def test_other_kinds_of_files_are_refused_clearly(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(2)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert "before PyTorch 1.6" in refusal(tmp_path / "old.pth")
    (tmp_path / "text.pth").write_text("hello")
    assert "another kind" in refusal(tmp_path / "text.pth")
    (tmp_path / "bare.pth").write_bytes(pickle.dumps({"a": 1}))
    assert "another kind" in refusal(tmp_path / "bare.pth")
    assert "no such file" in refusal(tmp_path / "missing.pth")
    with zipfile.ZipFile(tmp_path / "zip.pth", "w") as file:
        file.writestr("readme.txt", "x")
    assert "data.pkl" in refusal(tmp_path / "zip.pth")
    good = program(mapping(weight=tensor()))
    assert "stored plainly" in refusal(archive(tmp_path / "packed.pth", good, FLOATS, zipfile.ZIP_DEFLATED))
    assert "byte order" in refusal(archive(tmp_path / "big.pth", good, FLOATS, byteorder="big"))
    assert "no model parameters" in refusal(archive(tmp_path / "empty.pth", program(b"}")))
    for cut in (1, 10, len(good) // 2, len(good) - 1):
        refusal(archive(tmp_path / "cut.pth", good[:cut], FLOATS))
    whole = archive(tmp_path / "whole.pth", good, FLOATS).read_bytes()
    (tmp_path / "half.pth").write_bytes(whole[: len(whole) // 2])
    assert "damaged" in refusal(tmp_path / "half.pth")


def test_modules_inside_themselves_end_in_a_refusal(tmp_path: Path) -> None:
    # memo slot 0 holds the module, which is then put among its own children
    looped = MODULE + b"q\x00" + mapping(_parameters=mapping(), _modules=mapping(again=b"h\x00")) + b"b"
    assert "nested without end" in refusal(archive(tmp_path / "x.pth", program(looped)))
