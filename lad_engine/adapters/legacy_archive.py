"""A file written by torch.save (the zip form): its object graph read inertly, its tensors rebuilt one at a time when asked for."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from ..errors import AdapterError
from .inert_pickle import Record, StorageRef, read_inert

ELEMENT = {
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
# first bytes of the form before PyTorch 1.6: the pickled number 0x1950a86a20f9469cfc6c
OLD_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"


@dataclass(frozen=True)
class TensorRef:
    """A tensor not read yet: where its elements lie in the archive, and its shape."""

    storage: StorageRef
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype:
        return ELEMENT[self.storage.kind]


class LegacyArchive:
    """An open .pth file; `root` is its object graph (plain containers and Records), `load` reads one tensor.

    Raises on opening:
        AdapterError: not a zip archive of torch.save, damaged, or its pickle is refused (see inert_pickle).
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            with self.path.open("rb") as file:
                start = file.read(16)
            if start[2:14] == OLD_MAGIC or start[:12] == OLD_MAGIC:
                raise AdapterError(
                    f"{self.path}: is in the old form of torch.save (before PyTorch 1.6), expected the zip form. "
                    "Load and save it once more with a current PyTorch where you trust the file."
                )
            self._zip = zipfile.ZipFile(self.path)
        except FileNotFoundError as error:
            raise AdapterError(f"{self.path}: there is no such file.") from error
        except (OSError, zipfile.BadZipFile) as error:
            raise AdapterError(
                f"{self.path}: cannot be opened as a torch.save archive ({error}), expected a .pth file. It is damaged or of another kind."
            ) from error
        try:
            self._open()
        except BaseException:
            self._zip.close()
            raise

    def _open(self) -> None:
        pickles = [name for name in self._zip.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise AdapterError(
                f"{self.path}: holds {len(pickles)} data.pkl, expected exactly 1 as torch.save writes it. It is of another kind."
            )
        self._prefix = pickles[0].removesuffix("data.pkl")
        if f"{self._prefix}byteorder" in self._zip.namelist() and self._bytes("byteorder").strip() != b"little":
            raise AdapterError(f"{self.path}: byte order is not little, expected a file saved on a little-endian machine.")
        self.root = read_inert(self._bytes("data.pkl"), str(self.path))

    def load(self, ref: TensorRef) -> Tensor:
        """Read one tensor into memory, contiguous, in the dtype it was stored in."""
        size = ref.storage.count * ref.dtype.itemsize
        data = self._bytes(f"data/{ref.storage.key}", size)
        if not data:
            return torch.empty(ref.shape, dtype=ref.dtype)
        flat = torch.frombuffer(bytearray(data), dtype=ref.dtype)
        return torch.as_strided(flat, ref.shape, ref.stride, ref.offset).clone(memory_format=torch.contiguous_format)

    def _bytes(self, name: str, size: int | None = None) -> bytes:
        try:
            info = self._zip.getinfo(self._prefix + name)
            # torch.save never compresses; a compressed entry could unpack to any size
            if (
                info.compress_type != zipfile.ZIP_STORED
                or info.file_size != info.compress_size
                or (size is not None and info.file_size != size)
            ):
                raise AdapterError(
                    f"{self.path}: entry {name} has {info.file_size} bytes, expected {size if size is not None else 'it stored plainly'}."
                )
            return self._zip.read(info)
        except KeyError as error:
            raise AdapterError(
                f"{self.path}: entry {name} is missing, expected every storage its pickle names. The file is incomplete."
            ) from error
        except (OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
            raise AdapterError(f"{self.path}: entry {name} cannot be read ({error}). The file is damaged.") from error

    def __enter__(self) -> LegacyArchive:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._zip.close()


def tensor_ref(value: Any, where: str) -> TensorRef | None:
    """The tensor a record describes (a parameter or a plain tensor), None for anything else.

    Raises:
        AdapterError: it is a tensor whose shape, strides or offset do not fit its storage.
    """
    while isinstance(value, Record) and value.origin[1].startswith("_rebuild_parameter"):
        value = value.args[0] if value.args else None
    if not isinstance(value, Record) or value.origin != ("torch._utils", "_rebuild_tensor_v2"):
        return None
    storage, offset, shape, stride = (*value.args, None, None, None, None)[:4]
    shape, stride = _sizes(shape), _sizes(stride)
    fits = isinstance(storage, StorageRef) and _is_size(offset) and shape is not None and stride is not None and len(shape) == len(stride)
    if fits:
        last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
        # strides of zero would make a huge tensor of a tiny file
        fits = 0 in shape or (last < storage.count and _elements(shape) <= storage.count)
    if not fits:
        raise AdapterError(
            f"{where}: tensor of shape {shape} with strides {stride} does not fit its storage, expected it inside. "
            "The file is damaged or hostile."
        )
    return TensorRef(storage, offset, shape, stride)


def mapping_of(value: Any) -> Mapping[Any, Any]:
    """The entries of a dict or an OrderedDict record, empty for anything else."""
    if isinstance(value, Record) and value.origin == ("collections", "OrderedDict"):
        return value.entries
    return value if isinstance(value, dict) else {}


def _sizes(value: Any) -> tuple[int, ...] | None:
    if isinstance(value, Record) and value.origin == ("torch", "Size") and value.args:
        value = value.args[0]
    if not isinstance(value, (tuple, list)) or not all(_is_size(item) for item in value):
        return None
    return tuple(value)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


def _elements(shape: tuple[int, ...]) -> int:
    total = 1
    for n in shape:
        total *= n
    return total
