"""Read a pickle without executing it: every global becomes an inert record, and only names on a list become even that.

Nothing is imported or called: a REDUCE on a record class makes one more record, which holds its arguments. Tensors are rebuilt
afterwards from the records (legacy_archive.py), by our own code.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from typing import Any, NamedTuple

from ..errors import AdapterError

STORAGES = ("HalfStorage", "BFloat16Storage", "FloatStorage", "DoubleStorage", "LongStorage", "IntStorage", "ShortStorage", "CharStorage")
STORAGES += ("ByteStorage", "BoolStorage")
DTYPES = ("float16", "bfloat16", "float32", "float64", "int64", "int32", "int16", "int8", "uint8", "bool")
WRAPPER_CLASSES = ("CustomTransformerModel", "CustomTransformerConfig")
NAMED = {
    *(("torch", name) for name in (*STORAGES, *DTYPES, "device", "Size")),
    *(("torch._utils", name) for name in ("_rebuild_tensor_v2", "_rebuild_parameter", "_rebuild_parameter_with_state")),
    ("collections", "OrderedDict"),
    *((module, name) for module in ("builtins", "__builtin__") for name in ("set", "getattr")),
    *(
        (module, name)
        for module in ("__main__", "models", "models.custom_transformer", "model_config", "configs.model_config")
        for name in WRAPPER_CLASSES
    ),
}
# whole-module pickles of PEFT-wrapped transformers models name classes of these modules and nothing else
INERT_MODULES = (
    "peft",
    "torch.nn.modules",
    "transformers.models",
    "transformers.generation.configuration_utils",
    "transformers.configuration_utils",
)
INERT_MODULES += ("transformers.activations", "transformers.modeling_rope_utils")
# a whole 8B module pickles to less than 1 MB of structure; the tensors lie outside
MAX_PICKLE_BYTES = 64 << 20
BROKEN = (
    pickle.UnpicklingError,
    EOFError,
    AttributeError,
    TypeError,
    ValueError,
    LookupError,
    ImportError,
    OverflowError,
    MemoryError,
    RecursionError,
)


class Record:
    """What a global, a call of it, or an object of it was in the pickle; `origin` is its (module, name), args what it was called with."""

    __slots__ = ("args", "entries", "state")
    origin: tuple[str, str] = ("", "")

    def __new__(cls, *args: Any) -> Record:
        record = super().__new__(cls)
        record.args, record.state, record.entries = args, None, {}
        return record

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.entries[key] = value


class Attribute(Record):
    """`getattr(owner, "name")`, inert: how Python pickles an enum member, and the bound methods that PEFT and accelerate keep.

    Only a plain name of a known class, or of an object of one, may be asked for; anything else, and any chain, is refused.
    """

    __slots__ = ()
    origin = ("builtins", "getattr")

    def __new__(cls, *args: Any) -> Attribute:
        owner, name = args if len(args) == 2 else (None, None)
        is_record = isinstance(owner, Record) or (isinstance(owner, type) and issubclass(owner, Record))
        is_known = is_record and (owner.origin not in NAMED or owner.origin[1] in WRAPPER_CLASSES)
        if not (is_known and isinstance(name, str) and name.isidentifier() and not name.startswith("_")):
            raise Refused("getattr of something that is not a plain name of a known class")
        return super().__new__(cls, *args)


class StorageRef(NamedTuple):
    """A storage the pickle points to: its key in the archive, its element type by torch storage name, its number of elements."""

    key: str
    kind: str
    count: int


class Refused(Exception):
    """Raised inside the reader with what was found; `read_inert` turns it into the caller's sentence."""


def read_inert(data: bytes, where: str) -> Any:
    """Return the object graph of a pickle as plain containers, Records and StorageRefs.

    Raises:
        AdapterError: the pickle names a global that is not on the list (the sentence names it), or is damaged.
    """
    if len(data) > MAX_PICKLE_BYTES:
        raise AdapterError(
            f"{where}: its pickle is {len(data)} bytes, expected at most {MAX_PICKLE_BYTES}. This is not a model saved by torch.save."
        )
    try:
        _scan(data)
        return _InertUnpickler(io.BytesIO(data)).load()
    except Refused as error:
        raise AdapterError(
            f"{where}: names {error}, expected only tensors and known model classes. Nothing of it was executed; do not load it elsewhere."
        ) from None
    except BROKEN as error:
        raise AdapterError(
            f"{where}: its pickle is damaged or hostile ({type(error).__name__}: {error}), expected a model saved by torch.save."
        ) from error


def is_allowed(module: str, name: str) -> bool:
    """Say whether a global may appear; dotted names would reach into attributes and never may."""
    if (module, name) in NAMED:
        return True
    return name.isidentifier() and any(module == known or module.startswith(f"{known}.") for known in INERT_MODULES)


def _scan(data: bytes) -> None:
    # a first pass that only looks: globals written out are refused before the first object exists
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name in ("GLOBAL", "INST"):
            module, _, name = str(argument).partition(" ")
            _refuse_unknown(module, name)
        elif opcode.name.startswith("EXT"):
            raise Refused(f"the registered extension {argument}")
        elif opcode.name.endswith("PUT") and isinstance(argument, int) and argument > len(data):
            raise Refused(f"memory slot {argument}")


def _refuse_unknown(module: str, name: str) -> None:
    if not is_allowed(module, name):
        raise Refused(f"{module}.{name}")


class _InertUnpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self._classes: dict[tuple[str, str], type[Record]] = {}

    def find_class(self, module: str, name: str) -> type[Record]:
        _refuse_unknown(module, name)
        if name == "getattr" and module in ("builtins", "__builtin__"):
            return Attribute
        origin = (module, name)
        if origin not in self._classes:
            self._classes[origin] = type(name, (Record,), {"__slots__": (), "origin": origin})
        return self._classes[origin]

    def persistent_load(self, pid: Any) -> StorageRef:
        tag, kind, key, _, count = pid if isinstance(pid, tuple) and len(pid) == 5 else (None,) * 5
        is_storage = isinstance(kind, type) and issubclass(kind, Record) and kind.origin[0] == "torch" and kind.origin[1] in STORAGES
        if (
            tag != "storage"
            or not is_storage
            or not isinstance(key, str)
            or not isinstance(count, int)
            or isinstance(count, bool)
            or count < 0
        ):
            raise Refused("a persistent object that is not a tensor storage")
        return StorageRef(key, kind.origin[1], count)
