"""The rows of one batch on the device: a request is put into a free slot between two steps, and leaves it when it is done."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from operator import attrgetter
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import SamplingParams
from ..contracts import Canvas
from ..runtime.arena import move_rows, tensor_paths
from ..runtime.readout import FRAME
from .engine_parts import EngineParts

# A bucket takes this many token biases; a request with others that do not fit goes to another batch.
BIASES = 8


class Slots:
    """One bucket's buffers, some rows of them in use; rows that are not are done and cost as little as the driver lets them.

    Rows differ in anything but what `key` names. The rules that rows follow (`used`) may be more than one row's own: a batch opened
    later for the same key can be wider.
    """

    def __init__(self, parts: EngineParts, bucket: Any, first: Any) -> None:
        """Allocate buffers of `bucket` and put `first`, a host state of one row, into slot 0."""
        self._parts, self.bucket, self.rows = parts, bucket, int(bucket.rows)
        self._captured = parts.graphs.lease_bucket(bucket, first) if parts.graphs is not None else None
        host = parts.family.blank(bucket, first) if self._captured else parts.family.blank_rows(bucket, first)
        parts.family.fill(host, first)
        if self._captured:
            self.state = self._captured.state
            self._captured.arena.load(lambda buffers: parts.family.fill(buffers, first))
        else:
            self.state = _on_device(host, parts.device)
            parts.family.seat(self.state, 0, first)
        axes = ((path, parts.family.row_axis(path)) for path in tensor_paths(self.state) if path != "rule.bias_values")
        self._row_axes = [(path, axis) for path, axis in axes if axis is not None]
        self._blanks: tuple[Any, list[tuple[np.ndarray, np.ndarray]]] | None = None
        self._views: list[tuple[np.ndarray, np.ndarray]] | None = None
        ids = first.rule.bias_ids.tolist()
        self._bias_ids: list[int | None] = [*ids, *([None] * (bucket.biases - len(ids)))]

    def fits(self, bucket: Any, row: Any) -> bool:
        """Say whether a request of this bucket can be computed in these buffers."""
        new = sum(token not in self._bias_ids for token in row.rule.bias_ids.tolist())
        is_alike = self._key(bucket) == self._key(self.bucket) and bucket.max_top_k <= self.bucket.max_top_k
        return is_alike and bucket.used <= self.bucket.used and new <= self._bias_ids.count(None)

    @property
    def candidates(self) -> int:
        """Candidates that a step sorts for every row."""
        return self.bucket.max_top_k

    def _key(self, bucket: Any) -> Any:
        are_few = 0 < bucket.max_top_k <= self._parts.few_candidates
        return dataclasses.replace(key(bucket), max_top_k=1) if are_few else key(bucket)

    def put(self, slot: int, row: Any) -> None:
        """Begin a request, a host state of one row, in a free slot; the other rows do not notice."""
        one = self._filled(row)
        if self._views is not None:
            for target, source in self._views:
                target[slot : slot + 1] = source
        else:
            for path, axis in self._row_axes:
                attrgetter(path)(self.state).select(axis, slot).copy_(attrgetter(path)(one).select(axis, 0))
        self._put_biases(slot, row)
        self._parts.family.seat(self.state, slot, row)

    def drop(self, slot: int) -> None:
        """Take whatever is in a slot out of the batch."""
        self.state.done[slot] = True
        self._parts.family.rest(self.state, slot)

    def step(self) -> None:
        """Take one step of every row."""
        if self._captured is not None:
            self._captured.replay()
        else:
            self._parts.denoiser.step_(self.state)

    def frame(self) -> Any:
        """Return the readout buffers on the host, after everything that was enqueued."""
        if self._captured is not None:
            arena, graphs = self._captured.arena, self._parts.graphs
            size = arena.frame_bytes
            graphs.backend.download(arena.block[:size], self._captured.pinned[0], self._captured.between[0])()
            return arena.frame(self._captured.pinned[0])
        return _host_frame(self.state)

    def resized(self, rows: int, live: Sequence[int]) -> Slots:
        """Return buffers of another capacity in which slot i goes on with what is in slot live[i]; these are given back."""
        other = object.__new__(Slots)
        other.__dict__.update(self.__dict__)
        other.bucket, other.rows = dataclasses.replace(self.bucket, rows=rows), rows
        other._views = None
        like = self.state
        if self._captured is not None:
            other._captured = self._parts.graphs.lease_bucket(other.bucket, like)
            other.state = other._captured.state
        else:
            other.state = _on_device(self._parts.family.blank_rows(other.bucket, like), self._parts.device)
        other._bias_ids = list(self._bias_ids)
        slots = [*live, *([live[0]] * (rows - len(live)))]
        move_rows(like, other.state, torch.tensor(slots, device=like.done.device), self._parts.family.row_axis)
        self._parts.family.move(like, other.state, slots)
        for slot in range(len(live), rows):
            other.drop(slot)
        self.close()
        return other

    def close(self) -> None:
        """Give a captured bucket back."""
        if self._captured is not None:
            self._parts.graphs.release(self._captured)
            self._captured = None

    def _filled(self, row: Any) -> Any:
        """Return host buffers of this bucket for one row that hold `row`; they are taken again for the next."""
        family = self._parts.family
        if self._blanks is None:
            one = family.blank(dataclasses.replace(self.bucket, rows=1), row)
            blank = {path: attrgetter(path)(one).clone().numpy() for path, _ in self._row_axes}
            self._blanks = one, [(attrgetter(path)(one).numpy(), blank[path]) for path in blank]
        one, pairs = self._blanks
        if self._views is None and self._parts.device.type == "cpu":
            # NumPy's rows: a tenth of torch's time per copy, and there are fifty.
            self._views = [(_rows(self.state, path, axis), _rows(one, path, axis)) for path, axis in self._row_axes]
        for target, empty in pairs:
            np.copyto(target, empty)
        family.fill(one, row)
        return one

    def _put_biases(self, slot: int, row: Any) -> None:
        """Give the row its biases in the columns all rows share; the columns of others add nothing to it."""
        rule = self.state.rule
        values = torch.zeros(len(self._bias_ids))
        own = dict(zip(row.rule.bias_ids.tolist(), row.rule.bias_values[0].tolist(), strict=True))
        for token, value in own.items():
            if token not in self._bias_ids:
                free = self._bias_ids.index(None)
                self._bias_ids[free] = token
                # Until now this column repeated the mask's bias.
                rule.bias_values[:, free] = 0
                rule.bias_ids[free] = token
            values[self._bias_ids.index(token)] = value
        rule.bias_values[slot].copy_(values)


class AlignedRows:
    """A batch whose rows began together and can only leave: for decoding families whose rows share a step counter."""

    def __init__(self, parts: EngineParts, canvases: Sequence[Canvas], params: Sequence[SamplingParams]) -> None:
        self._parts, self.rows = parts, len(canvases)
        self.state = parts.begin(canvases, params)

    def drop(self, slot: int) -> None:
        self.state.done[slot] = True

    def step(self) -> None:
        self._parts.denoiser.step_(self.state)
        self.state.resting = tuple(self.state.done.tolist())

    def frame(self) -> Any:
        return _host_frame(self.state)

    def close(self) -> None:
        """Nothing is leased."""


def _rows(state: Any, path: str, axis: int) -> np.ndarray:
    """Return a buffer of the host as an array whose first axis counts rows."""
    return np.moveaxis(attrgetter(path)(state).numpy(), axis, 0)


def key(bucket: Any) -> Any:
    """Return what all rows of a batch share; rules and biases are only bounded by the batch's."""
    return dataclasses.replace(bucket, rows=1, used=frozenset(), biases=BIASES)


def widest(bucket: Any, used: frozenset[str], rows: int) -> Any:
    """Return the bucket of a batch that is opened for a request, with room for `rows` and for rows of other rules."""
    return dataclasses.replace(bucket, rows=rows, used=bucket.used | used, biases=max(BIASES, bucket.biases))


def _host_frame(state: Any) -> Any:
    if state.done.device.type == "cpu":
        return state
    return SimpleNamespace(mask_id=state.mask_id, **{name: getattr(state, name).cpu() for name in FRAME})


def _on_device(state: Any, device: torch.device) -> Any:
    """Return a state with its tensors, and those of its tables, on the device."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(state):
        value = getattr(state, field.name)
        if isinstance(value, Tensor):
            changes[field.name] = value.to(device)
        elif dataclasses.is_dataclass(value):
            changes[field.name] = _on_device(value, device)
    return dataclasses.replace(state, **changes)
