"""Files and folders that appear whole or not at all: written beside their place, then renamed into it."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..errors import AdapterError


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on success it replaces `path`, on any failure it is removed.

    Raises:
        AdapterError: the folder cannot be written or the disk is full.
    """
    path = Path(path)
    if path.is_dir():
        raise AdapterError(f"{path}: is a folder, expected a file name to write to. Give a name ending in .safetensors.")
    if path.exists() and not path.is_file():
        # A device would be replaced by a file of its name.
        raise AdapterError(f"{path}: is no regular file, expected one or a new name. Choose another.")
    temporary = _beside(path, "part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _settle(temporary)
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{path}: could not be written ({_reason(error)}). Check the folder's permissions and free space.") from error
    finally:
        if temporary.exists():
            temporary.unlink()


@contextmanager
def whole_folder(path: str | Path, marker: str) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success it takes its place. An existing folder is replaced only if it holds `marker`.

    Raises:
        AdapterError: `path` is something else already, the folder cannot be written, or the disk is full.
    """
    path = Path(path)
    if path.exists() and not (path.is_dir() and ((path / marker).is_file() or not any(path.iterdir()))):
        raise AdapterError(f"{path}: exists and is not a folder with {marker}, expected a new or empty folder. Choose another name.")
    temporary = _beside(path, "part")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for file in temporary.iterdir():
            _settle(file)
        _swap(temporary, path)
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{path}: could not be written ({_reason(error)}). Check the folder's permissions and free space.") from error
    finally:
        if temporary.exists():
            shutil.rmtree(temporary)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON with a closing newline."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write one safetensors file (contiguous CPU copies), readable by whom other new files are."""
    path.touch()
    mode = path.stat().st_mode
    save_file({name: t.detach().to("cpu").contiguous() for name, t in tensors.items()}, str(path), metadata=dict(metadata or {}))
    # safetensors makes files private to their owner, so that a shared folder would hold adapters nobody else can load.
    path.chmod(mode)


def _swap(new: Path, place: Path) -> None:
    if not place.exists():
        new.rename(place)
        return
    old = _beside(place, "old")
    place.rename(old)
    try:
        new.rename(place)
    except OSError:
        old.rename(place)
        raise
    shutil.rmtree(old)


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.{ending}")


def _settle(file: Path) -> None:
    # the rename must not overtake the data on its way to the disk
    with file.open("rb") as stream:
        os.fsync(stream.fileno())


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
