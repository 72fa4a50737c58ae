"""Archives in the form of torch.save with a pickle of one's own choice, for tests of the reader that executes nothing."""

from __future__ import annotations

import pickle
import struct
import zipfile
from pathlib import Path


def archive(
    path: Path, data: bytes, storages: dict[str, bytes] | None = None, compression: int = zipfile.ZIP_STORED, byteorder: str = "little"
) -> Path:
    """Write `data` as data.pkl of a torch.save archive with the given storages."""
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("model/data.pkl", data)
        file.writestr("model/byteorder", byteorder)
        for key, content in (storages or {}).items():
            file.writestr(f"model/data/{key}", content)
    return path


def glob(module: str, name: str) -> bytes:
    """The opcode that names a global."""
    return f"c{module}\n{name}\n".encode()


def text(value: str) -> bytes:
    """The opcode of a string."""
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def number(value: int) -> bytes:
    """The opcode of an integer of any size."""
    encoded = pickle.encode_long(value)
    return b"\x8a" + bytes([len(encoded)]) + encoded


def tuple_of(*parts: bytes) -> bytes:
    """The opcodes of a tuple."""
    return b"(" + b"".join(parts) + b"t"


def call(function: bytes, *arguments: bytes) -> bytes:
    """The opcodes of a call."""
    return function + tuple_of(*arguments) + b"R"


def storage(key: str = "0", kind: str = "FloatStorage", count: int = 4) -> bytes:
    """The opcodes of a persistent storage."""
    return tuple_of(text("storage"), glob("torch", kind), text(key), text("cpu"), number(count)) + b"Q"


def tensor(shape: tuple[int, ...] = (2, 2), stride: tuple[int, ...] = (2, 1), offset: int = 0, **at: object) -> bytes:
    """The opcodes of a tensor over a storage."""
    sizes = (tuple_of(*map(number, shape)), tuple_of(*map(number, stride)))
    return call(
        glob("torch._utils", "_rebuild_tensor_v2"), storage(**at), number(offset), *sizes, b"\x89", call(glob("collections", "OrderedDict"))
    )


def mapping(**items: bytes) -> bytes:
    """The opcodes of a dict."""
    return b"}(" + b"".join(text(name) + value for name, value in items.items()) + b"u"


def program(*parts: bytes, protocol: int = 2) -> bytes:
    """A whole pickle."""
    return b"\x80" + bytes([protocol]) + b"".join(parts) + b"."
