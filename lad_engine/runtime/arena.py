"""One block of memory for all buffers of a bucket: a request starts with one copy into it, and a step is read with one copy out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from operator import attrgetter
from types import SimpleNamespace
from typing import Any

from torch import Tensor

# Every buffer starts at a multiple of this: a vector load of any dtype is aligned.
ALIGNMENT = 64


class Arena:
    """The tensors of a state (any dataclass, nested one deep) as views of one device block whose addresses never change.

    state: the views, for the step. blank: what the block holds where a request puts nothing. The buffers named in `first` stand at
    its beginning, in that order: copying the first `frame_bytes` bytes brings them all to the host.
    """

    def __init__(self, blank: Any, first: Sequence[str], backend: Any) -> None:
        self.mask_id: int = getattr(blank, "mask_id", -1)
        self._backend = backend
        self.places, self.frame_bytes, size = laid_out(blank, first)
        self._first = tuple(first)
        self.block, self._staging = backend.empty(size), backend.pinned(size)
        self._staged = _rebuilt(blank, self._views(self._staging))
        for path, (_, tensor) in self.places.items():
            attrgetter(path)(self._staged).copy_(tensor)
        self._blank = self._staging.clone()
        self.block.copy_(self._staging)
        self.state = _rebuilt(blank, self._views(self.block))

    @property
    def nbytes(self) -> int:
        """Bytes of the block."""
        return self.block.nbytes

    def load(self, fill: Callable[[Any], None]) -> None:
        """Let `fill` write a request over blank host buffers and send them to the device in one copy, in order with its work."""
        self._backend.before_staging(self)
        self._staging.copy_(self._blank)
        fill(self._staged)
        self._backend.upload(self, self._staging, self.block)

    def frame(self, copied: Tensor) -> SimpleNamespace:
        """Return the buffers named in `first` as views of a copy of the block's beginning."""
        return SimpleNamespace(mask_id=self.mask_id, **self._views(copied, self._first))

    def _views(self, block: Tensor, names: Sequence[str] | None = None) -> dict[str, Tensor]:
        views = {}
        for path in names if names is not None else self.places:
            offset, like = self.places[path]
            views[path] = block[offset : offset + like.nbytes].view(like.dtype).view(like.shape)
        return views


def laid_out(blank: Any, first: Sequence[str]) -> tuple[dict[str, tuple[int, Tensor]], int, int]:
    """Return (path -> its offset and the blank buffer, bytes of the buffers in `first`, bytes of all); nothing is allocated."""
    places: dict[str, tuple[int, Tensor]] = {}
    offset = frame_bytes = 0
    for path in [*first, *(path for path in tensor_paths(blank) if path not in first)]:
        tensor = attrgetter(path)(blank)
        places[path] = (offset, tensor)
        offset = -(-(offset + tensor.nbytes) // ALIGNMENT) * ALIGNMENT
        if first and path == first[-1]:
            frame_bytes = offset
    return places, frame_bytes, offset


def move_rows(source: Any, target: Any, rows: Tensor, row_axis: Callable[[str], int | None]) -> None:
    """Copy rows `rows` (`[B']` int64, B' rows of target) of every buffer of one state into another, and what the batch shares as it is."""
    for path in tensor_paths(source):
        axis, old = row_axis(path), attrgetter(path)(source)
        attrgetter(path)(target).copy_(old if axis is None else old.index_select(axis, rows))


def tensor_paths(state: Any) -> list[str]:
    """Return the names of a dataclass's tensors, those of its inner dataclasses as "inner.name"."""
    paths = []
    for field in dataclasses.fields(state):
        value = getattr(state, field.name)
        if isinstance(value, Tensor):
            paths.append(field.name)
        elif dataclasses.is_dataclass(value):
            paths += [f"{field.name}.{path}" for path in tensor_paths(value)]
    return paths


def _rebuilt(state: Any, tensors: dict[str, Tensor]) -> Any:
    """Return a copy of a dataclass with its tensors replaced by path."""
    changes: dict[str, Any] = {path: tensor for path, tensor in tensors.items() if "." not in path}
    for name in {path.partition(".")[0] for path in tensors if "." in path}:
        inner = {path.partition(".")[2]: tensor for path, tensor in tensors.items() if path.startswith(f"{name}.")}
        changes[name] = _rebuilt(getattr(state, name), inner)
    return dataclasses.replace(state, **changes)
