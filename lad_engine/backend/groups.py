"""Running batches: which requests share one, how it takes a step, and what happens to them when a step fails."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from ..errors import CaptureError, DeviceMemoryError, LadError, StepError
from .engine_parts import EngineParts
from .limits import Limits
from .request import Request
from .slots import AlignedRows, Slots, key, widest

log = logging.getLogger(__name__)


class Group:
    """Some slots, and the request in each of them."""

    def __init__(self, slots: Slots | AlignedRows, requests: dict[int, Request], is_open: bool) -> None:
        self.slots, self.requests, self.is_open = slots, requests, is_open

    def free_slot(self) -> int | None:
        """Return a slot nobody uses."""
        return next((slot for slot in range(self.slots.rows) if slot not in self.requests), None)

    def residents(self) -> list[Any]:
        """Return what each slot is computed with."""
        return [self.requests[slot].resident if slot in self.requests else None for slot in range(self.slots.rows)]

    def describe(self) -> str:
        """Return the batch's shape in words."""
        state = self.slots.state
        return f"{self.slots.rows} x {state.ids.shape[1] if hasattr(state, 'ids') else state.answer.shape[1]}"


class Groups:
    """All running batches. `on_frame` gets (request, frame, slot) after each step, `on_fail` (request, error); both end requests."""

    def __init__(
        self,
        parts: EngineParts,
        limits: Limits,
        on_frame: Callable[[Request, Any, int], bool],
        on_fail: Callable[[Request, LadError], None],
    ) -> None:
        self._parts, self._limits, self._on_frame, self._on_fail = parts, limits, on_frame, on_fail
        self._groups: list[Group] = []
        # By bucket: the rules its batches were asked for so far, and the rows at which one ran out of memory.
        self._used: dict[Any, frozenset[str]] = {}
        self._most_rows: dict[Any, int] = {}
        self.retries = 0

    def __iter__(self) -> Iterator[Group]:
        return iter(list(self._groups))

    def describe(self) -> dict[str, int]:
        """Return the requests per shape of batch."""
        shapes: Counter[str] = Counter()
        for group in self._groups:
            shapes[group.describe()] += len(group.requests)
        return dict(shapes)

    def add(self, requests: Sequence[Request]) -> None:
        """Begin requests: each joins a batch that has room for it, or opens one.

        Raises nothing: a request that cannot begin fails alone.
        """
        if not self._parts.can_join:
            self._open_aligned(requests)
            return
        for request in requests:
            try:
                row = self._parts.row(request.canvas, request.params)
                self._join(request, row, self._parts.bucket(row))
            except Exception as error:  # noqa: BLE001 - whatever beginning raises concerns this request alone
                self._on_fail(request, _reason(error, "could not begin"))

    def remove(self, request: Request) -> None:
        """Take a request out at this step boundary; nothing happens where it does not run."""
        for group in self._groups:
            for slot, other in list(group.requests.items()):
                if other is request:
                    group.slots.drop(slot)
                    del group.requests[slot]
        self._tidy(may_shrink=False)

    def step(self, may_shrink: bool) -> int:
        """Take one step of every batch; returns how many rows took part."""
        rows = 0
        for group in self:
            rows += len(group.requests)
            self._step(group)
        self._tidy(may_shrink)
        return rows

    def clear(self) -> None:
        """Forget all batches, also those that cannot give their buffers back."""
        for group in self._groups:
            try:
                group.slots.close()
            except Exception:
                log.exception("a batch could not give its buffers back")
        self._groups.clear()

    def _step(self, group: Group) -> None:
        try:
            self._parts.point(group.residents())
            group.slots.step()
            frame = group.slots.frame()
        except Exception as error:  # noqa: BLE001 - a step may raise anything; the batch is taken apart and the engine goes on
            self._failed(group, error)
            return
        finite = torch.isfinite(frame.confidence).flatten(1).all(1).tolist()
        for slot, request in list(group.requests.items()):
            if not finite[slot]:
                group.slots.drop(slot)
                del group.requests[slot]
                self._on_fail(request, StepError(f"request {request.id}: its logits are not finite, expected numbers. Others went on."))
            elif self._on_frame(request, frame, slot):
                group.slots.drop(slot)
                del group.requests[slot]

    def _failed(self, group: Group, error: Exception) -> None:
        """Take a batch apart: its halves begin again from their first steps, which give the same tokens; one alone fails."""
        requests = list(group.requests.values())
        self._groups.remove(group)
        is_memory = isinstance(error, (torch.OutOfMemoryError, DeviceMemoryError))
        rows = group.slots.rows
        try:
            group.slots.close()
        finally:
            group.slots = None
        if is_memory:
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if requests and self._parts.can_join:
                bucket = key(self._parts.bucket(self._parts.row(requests[0].canvas, requests[0].params)))
                self._most_rows[bucket] = max(1, min(rows, self._most_rows.get(bucket, rows)) // 2)
        retried = []
        for request in requests:
            if (request.retries > 0) if is_memory else (len(requests) == 1):
                self._on_fail(request, _reason(error, "a step failed"))
            else:
                request.retries += is_memory
                retried.append(request)
        self.retries += bool(retried)
        half = -(-len(retried) // 2)
        for part in (retried[:half], retried[half:]):
            if part:
                self._open_apart(part)

    def _open_apart(self, requests: Sequence[Request]) -> None:
        """Begin requests in a batch of their own that nobody joins."""
        if not self._parts.can_join:
            self._open_aligned(requests)
            return
        opened: Group | None = None
        for request in requests:
            try:
                row = self._parts.row(request.canvas, request.params)
                bucket = self._parts.bucket(row)
                slot = opened.free_slot() if opened is not None and opened.slots.fits(bucket, row) else None
                if opened is None or slot is None:
                    opened = self._open(request, row, bucket, _power_of_two(len(requests)), is_open=False)
                else:
                    opened.slots.put(slot, row)
                    opened.requests[slot] = request
            except Exception as error:  # noqa: BLE001 - as in add
                self._on_fail(request, _reason(error, "could not begin again"))

    def _join(self, request: Request, row: Any, bucket: Any) -> None:
        most = min(self._limits.max_rows, self._most_rows.get(key(bucket), self._limits.max_rows))
        # The batch that sorts most candidates first, so that of two whose rows could be together the other one empties.
        for group in sorted(self._groups, key=lambda group: -group.slots.candidates):
            if not group.is_open or not group.slots.fits(bucket, row):
                continue
            if group.free_slot() is None and group.slots.rows < most:
                grown = min(most, group.slots.rows * 2)
                self._parts.check_memory(dataclasses.replace(group.slots.bucket, rows=grown), row)
                self._resize(group, grown)
            slot = group.free_slot()
            if slot is not None and len(group.requests) < most:
                group.slots.put(slot, row)
                group.requests[slot] = request
                return
        self._open(request, row, bucket, min(most, self._parts.first_rows), is_open=True)

    def _open(self, request: Request, row: Any, bucket: Any, rows: int, is_open: bool) -> Group:
        shared = key(bucket)
        self._used[shared] = bucket.used | self._used.get(shared, frozenset())
        wide = widest(bucket, self._used[shared], rows)
        self._parts.check_memory(wide, row)
        group = Group(Slots(self._parts, wide, row), {0: request}, is_open)
        self._groups.append(group)
        return group

    def _open_aligned(self, requests: Sequence[Request]) -> None:
        while requests:
            part, requests = requests[: self._limits.max_rows], requests[self._limits.max_rows :]
            try:
                rows = AlignedRows(self._parts, [one.canvas for one in part], [one.params for one in part])
                self._groups.append(Group(rows, dict(enumerate(part)), is_open=False))
            except Exception as error:  # noqa: BLE001 - as in add
                if len(part) == 1:
                    self._on_fail(part[0], _reason(error, "could not begin"))
                else:
                    for one in part:
                        self._open_aligned([one])

    def _resize(self, group: Group, rows: int) -> None:
        live = sorted(group.requests)
        group.slots = group.slots.resized(rows, live)
        group.requests = {slot: group.requests[old] for slot, old in enumerate(live)}

    def _tidy(self, may_shrink: bool) -> None:
        """Close empty batches, and let the others go on in smaller buffers where a quarter of theirs is enough."""
        for group in self:
            if not group.requests:
                group.slots.close()
                self._groups.remove(group)
            elif may_shrink and isinstance(group.slots, Slots) and 4 * len(group.requests) <= group.slots.rows:
                rows = max(_power_of_two(len(group.requests)), self._parts.first_rows)
                # A saving, not a need: where it cannot be had, the batch goes on as it is.
                with contextlib.suppress(DeviceMemoryError, CaptureError, torch.OutOfMemoryError):
                    if rows < group.slots.rows:
                        self._resize(group, rows)


def _reason(error: Exception, what: str) -> LadError:
    if isinstance(error, LadError):
        return error
    if isinstance(error, torch.OutOfMemoryError):
        return DeviceMemoryError("memory: the device ran out of it, also with half the batch. Ask for a shorter answer or fewer at once.")
    reason = StepError(f"step: {what} with {type(error).__name__}: {error}. Others went on; the log has the details.")
    reason.__cause__ = error
    return reason


def _power_of_two(count: int) -> int:
    return 1 << max(count - 1, 0).bit_length()
