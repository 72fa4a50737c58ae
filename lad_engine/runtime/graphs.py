"""Captured steps by bucket: each is captured once, its buffers never move, and a decode leases one for as long as it runs."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import CaptureError, DeviceMemoryError
from .arena import Arena, laid_out, move_rows
from .memory import MemoryPlan
from .readout import FRAME

# Steps enqueued ahead of the one whose flags the host has seen: two hide a launch, the third a late thread.
STEPS_IN_FLIGHT = 3

# (what is being done, how many are done, of how many)
Progress = Callable[[str, int, int], None]


class Family(Protocol):
    """How a decoding family sorts its batches into buckets; `denoisers.lad_bucket.LadBuckets` says what each method promises.

    A family whose states lack some of the buffers of FRAME names those it has, flags first, in `frame`. One that keeps more than its
    buffers on the device says how much in `beside(bucket, facts, item_bytes)`.
    """

    def bucket_of(self, state: Any) -> Any: ...

    def smaller(self, bucket: Any, rows: int) -> Any: ...

    def blank(self, bucket: Any, like: Any) -> Any: ...

    def fill(self, buffers: Any, state: Any) -> None: ...

    def row_axis(self, path: str) -> int | None: ...


class Backend(Protocol):
    """Where steps are captured: `cuda_capture.CudaCapture`, or `simulated_capture.SimulatedCapture` without a GPU."""

    is_simulated: bool

    def empty(self, nbytes: int) -> Tensor: ...

    def pinned(self, nbytes: int) -> Tensor: ...

    def before_staging(self, arena: Arena) -> None: ...

    def upload(self, arena: Arena, staging: Tensor, block: Tensor) -> None: ...

    def download(self, source: Tensor, target: Tensor, between: Tensor | None = None) -> Callable[[], None]: ...

    def capture(self, step: Callable[[], None], state: Any) -> Any: ...

    def loop(self, graph: Any, state: Any) -> Callable[[], None]: ...

    def synchronize(self) -> None: ...

    def free_bytes(self) -> int | None: ...


class Captured:
    """One bucket ready to run: its arena, its graph, and the memory its flags and events leave through.

    rows: batch capacity. replay: enqueue one step. loop: enqueue a whole decode, None where only replays are wanted.
    """

    def __init__(self, bucket: Any, arena: Arena, backend: Backend, step: Callable[[], None]) -> None:
        self.bucket, self.arena, self.rows = bucket, arena, int(bucket.rows)
        self.pinned = [backend.pinned(arena.frame_bytes) for _ in range(STEPS_IN_FLIGHT)]
        self.between = [backend.empty(arena.frame_bytes) for _ in range(STEPS_IN_FLIGHT)]
        self._graph = backend.capture(step, arena.state)
        self.replay: Callable[[], None] = self._graph.replay
        self.loop: Callable[[], None] | None = None

    @property
    def state(self) -> Any:
        return self.arena.state

    def add_loop(self, backend: Backend) -> None:
        """Build the single-graph loop; CaptureError where the driver refuses it."""
        self.loop = backend.loop(self._graph, self.arena.state)


class Graphs:
    """The captured buckets of one denoiser.

    plan: the memory a bucket takes; None asks nothing. has_loop: every bucket also gets its single-graph loop. needs_loop False: where
    one cannot be built, there are replays alone from then on, and `loop_refused` says why. on_move: told the rows `[B']` int64 of a batch
    that goes on in a smaller bucket.
    """

    def __init__(
        self,
        denoiser: Any,
        family: Family,
        backend: Backend,
        plan: Callable[[Any, int], MemoryPlan] | None = None,
        has_loop: bool = False,
        progress: Progress | None = None,
        needs_loop: bool = True,
    ) -> None:
        self.family, self.backend, self.progress = family, backend, progress
        self._denoiser, self._plan, self._has_loop, self._needs_loop = denoiser, plan, has_loop, needs_loop
        self.loop_refused = ""
        self.on_move: Callable[[torch.Tensor], None] | None = None
        # A bucket has more than one entry where two decodes of its shape run at once.
        self._free: dict[Hashable, list[Captured]] = {}
        self._all: list[Captured] = []
        # Smaller buckets there was no memory for.
        self._beyond: set[Hashable] = set()

    def lease(self, state: Any) -> Captured:
        """Return the captured bucket for a batch laid out on the host, for one decode; capture it and its smaller ones where missing.

        Raises:
            DeviceMemoryError: the bucket does not fit the device's memory; nothing was allocated, or it was freed again.
            CaptureError: the step cannot be captured.
        """
        return self.lease_bucket(self.family.bucket_of(state), state)

    def lease_bucket(self, bucket: Any, like: Any) -> Captured:
        """Return a captured bucket, as `lease` does, for rows that come and go; dtypes and the rest follow `like`."""
        self._capture_missing(bucket, like)
        return self._free[bucket].pop()

    def lease_smaller(self, captured: Captured, live: int) -> Captured | None:
        """Return a bucket for `live` rows of a running decode where it has half of this one's rows at most and is ready."""
        bucket = self.family.smaller(captured.bucket, max(live, 1))
        free = self._free.get(bucket)
        return free.pop() if free and bucket.rows < captured.rows else None

    def has_smaller(self, captured: Captured) -> bool:
        """Say whether half of this bucket's rows could go on in a smaller one."""
        bucket = self.family.smaller(captured.bucket, max(captured.rows // 2, 1))
        # A family whose rows cannot move answers with the bucket itself, of which another may be free.
        return bucket.rows < captured.rows and bool(self._free.get(bucket))

    def prime(self, captured: Captured) -> None:
        """Let the denoiser write what the first step of a loaded batch reads, where it has such a thing (`prime_`)."""
        prime = getattr(self._denoiser, "prime_", None)
        if prime is not None:
            prime(captured.state)

    def release(self, captured: Captured) -> None:
        """Give a leased bucket back."""
        if captured in self._all:
            self._free[captured.bucket].append(captured)

    def move(self, source: Captured, target: Captured, slots: list[int]) -> None:
        """Continue the rows in `slots` of one bucket in another; its further rows get copies of a row that is done."""
        rows = torch.tensor(slots, device=source.state.done.device)
        move_rows(source.state, target.state, rows, self.family.row_axis)
        if self.on_move is not None:
            self.on_move(rows)

    def clear(self) -> None:
        """Forget every captured bucket; those still leased are freed when their decode ends."""
        self.backend.synchronize()
        self._free.clear()
        self._all.clear()
        self._beyond.clear()

    @property
    def buckets(self) -> list[Any]:
        """The captured buckets, in the order of their capture."""
        return [captured.bucket for captured in self._all]

    @property
    def buffer_bytes(self) -> int:
        """Bytes of all buffers on the device."""
        return sum(one.arena.nbytes + sum(block.nbytes for block in one.between) for one in self._all)

    def _capture_missing(self, bucket: Any, state: Any) -> None:
        wanted, rows = [bucket], bucket.rows
        while rows > 1:
            rows //= 2
            wanted.append(self.family.smaller(bucket, rows))
        # A family whose rows cannot move has no smaller buckets.
        wanted = list(dict.fromkeys(wanted))
        # A smaller one that another decode has leased, or that does not fit, is not captured again: shrinking is a saving, not a need.
        known = {captured.bucket for captured in self._all} | self._beyond
        missing = [one for one in wanted if (one is bucket and not self._free.get(one)) or (one is not bucket and one not in known)]
        for done, one in enumerate(missing):
            if self.progress is not None:
                self.progress("capturing the decode", done, len(missing))
            try:
                self._capture(one, state)
            except DeviceMemoryError:
                if one is bucket:
                    raise
                self._beyond.add(one)
        if missing and self.progress is not None:
            self.progress("capturing the decode", len(missing), len(missing))

    def _capture(self, bucket: Any, state: Any) -> None:
        blank = self.family.blank(bucket, state)
        plan = self._plan(bucket, buffer_bytes(self.family, blank)) if self._plan is not None else None
        if plan is not None:
            plan.check(self.backend.free_bytes())
        try:
            arena = Arena(blank, _frame_of(self.family), self.backend)
            captured = Captured(bucket, arena, self.backend, lambda: self._denoiser.step_(arena.state))
            self._add_loop(captured)
        except (DeviceMemoryError, torch.OutOfMemoryError) as error:
            raise DeviceMemoryError(plan.refusal() if plan is not None else str(error)) from error
        self._all.append(captured)
        self._free.setdefault(bucket, []).append(captured)

    def _add_loop(self, captured: Captured) -> None:
        if not self._has_loop or self.loop_refused:
            return
        try:
            captured.add_loop(self.backend)
        except CaptureError as error:
            if self._needs_loop:
                raise
            self.loop_refused = str(error)


def buffer_bytes(family: Family, blank: Any) -> int:
    """Return what a bucket's buffers will take of the device: the arena, and a frame for every step in flight."""
    _, frame, whole = laid_out(blank, _frame_of(family))
    return whole + STEPS_IN_FLIGHT * frame


def _frame_of(family: Family) -> tuple[str, ...]:
    return getattr(family, "frame", FRAME)
