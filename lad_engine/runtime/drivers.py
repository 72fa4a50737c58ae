"""Loops over captured steps: replayed with some in flight, or launched as one graph; the tokens are those of the eager loop."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from .graphs import STEPS_IN_FLIGHT, Captured, Graphs
from .readout import Outcome, read_outcome
from .runner import Frame


class CapturedDecode:
    """One batch, laid out on the host, decoded on leased buckets; use it as a context manager, so that they are given back.

    wants_loop: the whole decode is one launch and shows no steps. Rows that are done leave when half of a bucket's rows are: the
    others go on in a smaller bucket, where that is captured.
    """

    def __init__(self, graphs: Graphs, state: Any, wants_loop: bool = False) -> None:
        self._graphs, self._state, self._wants_loop = graphs, state, wants_loop
        self._outcomes: dict[int, Outcome] = {}
        self._leased: list[Captured] = []
        self.steps_enqueued = 0

    def __enter__(self) -> CapturedDecode:
        captured = self._graphs.lease(self._state)
        self._enter(captured, list(range(self.requests)))
        try:
            self._state.bounds[1] = self._floor()
            captured.arena.load(lambda buffers: self._graphs.family.fill(buffers, self._state))
            self._graphs.prime(captured)
        except BaseException:
            # Reading the prompts may need more memory than there is; nobody leaves what was never entered.
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        # What is still in flight writes to buffers that later requests fill on the same stream, so nobody waits for it.
        for captured in self._leased:
            self._graphs.release(captured)
        self._leased.clear()

    def frames(self, wants_events: bool = False) -> Iterator[Frame]:
        """Decode to the end, yielding a frame as each step's copy arrives; without `wants_events` a frame shows no rows."""
        if self._wants_loop and not wants_events:
            self._loop()
            return
        limit, step = self._state.max_steps, 0
        while step < limit:
            in_flight: deque[tuple[Any, Callable[[], None]]] = deque()
            is_shrinking = False
            while in_flight or (step + len(in_flight) < limit and not is_shrinking):
                while len(in_flight) < STEPS_IN_FLIGHT and step + len(in_flight) < limit and not is_shrinking:
                    in_flight.append(self._enqueue(step + len(in_flight), wants_events))
                frame, wait = in_flight.popleft()
                wait()
                # The frame's memory is taken again only when the caller comes back for the next one.
                yield Frame(step, frame, tuple(self._rows.items()) if wants_events else ())
                step += 1
                done = frame.done.tolist()
                live = [slot for slot in self._rows.values() if not done[slot]]
                if not live:
                    self._finish(list(self._rows))
                    return
                is_shrinking = is_shrinking or (len(live) <= self._floor() and step < limit)
            if is_shrinking:
                self._shrink(done)
        self._finish(list(self._rows))

    @property
    def requests(self) -> int:
        """How many requests the batch has."""
        return self._state.done.shape[0]

    def outcome(self, row: int) -> Outcome:
        """Return how a row ended; call it after `frames` has ended."""
        return self._outcomes[row]

    @property
    def _current(self) -> Captured:
        return self._leased[-1]

    def _enter(self, captured: Captured, rows: list[int]) -> None:
        """Go on in `captured`, whose slot i holds row rows[i]."""
        self._leased.append(captured)
        self._rows = {row: slot for slot, row in enumerate(rows)}

    def _floor(self) -> int:
        """Return the number of live rows at which the bucket is left, 0 where there is no smaller one."""
        return self._current.rows // 2 if self._graphs.has_smaller(self._current) else 0

    def _enqueue(self, step: int, wants_events: bool) -> tuple[Any, Callable[[], None]]:
        """Enqueue one step and the copy of what it did; returns (what the copy will show, a function that waits for it)."""
        captured, turn = self._current, step % STEPS_IN_FLIGHT
        captured.replay()
        self.steps_enqueued += 1
        # Without events the flags alone, which stand first and are only ever set, so that no step has to wait for their copy.
        count = captured.arena.frame_bytes if wants_events else captured.rows
        source, pinned = captured.arena.block[:count], captured.pinned[turn]
        wait = self._graphs.backend.download(source, pinned[:count], captured.between[turn] if wants_events else None)
        return captured.arena.frame(pinned), wait

    def _loop(self) -> None:
        while True:
            assert self._current.loop is not None, "loop driver: the bucket was captured without its loop"
            self._current.loop()
            frame = self._fetch()
            done = frame.done.tolist()
            if all(done[slot] for slot in self._rows.values()) or int(frame.step) >= self._state.max_steps:
                self._finish(list(self._rows))
                return
            self._shrink(done)

    def _shrink(self, done: list[bool]) -> None:
        """Note the rows that are done, and go on with the others in a smaller bucket."""
        live = [(row, slot) for row, slot in self._rows.items() if not done[slot]]
        captured = self._current
        smaller = self._graphs.lease_smaller(captured, len(live))
        if smaller is None:
            # Another decode took it since we looked; the loop must not leave for it again.
            captured.state.bounds[1].zero_()
            return
        self._finish([row for row, slot in self._rows.items() if done[slot]])
        slots = [slot for _, slot in live]
        self._graphs.move(captured, smaller, slots + [done.index(True)] * (smaller.rows - len(slots)))
        self._enter(smaller, [row for row, _ in live])
        smaller.state.bounds[1].fill_(self._floor())

    def _finish(self, rows: list[int]) -> None:
        """Read how `rows` ended."""
        frame = self._fetch()
        for row in rows:
            self._outcomes[row] = read_outcome(frame, self._rows[row])

    def _fetch(self) -> Any:
        """Wait for everything enqueued and copy what the current bucket shows."""
        captured = self._current
        size = captured.arena.frame_bytes
        self._graphs.backend.download(captured.arena.block[:size], captured.pinned[0], captured.between[0])()
        return captured.arena.frame(captured.pinned[0])
