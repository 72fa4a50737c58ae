"""The heart of both backends: one thread owns the device, admits what fits, and steps what runs until nothing is left."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch

from ..adapters.resident import read_incoming
from ..adapters.store import Resident
from ..config import SamplingParams
from ..contracts import Canvas
from ..engine import Engine
from ..errors import ClosedError, ConfigError, DeadlineError, LadError, OverloadError, RequestCancelledError, StepError
from ..runtime.readout import read_event, read_outcome
from ..text.prompts import Prompt
from .counters import Audit, Counters
from .engine_parts import EngineParts
from .events import WANTS, Committed, Event, Finished, Started, Stepped
from .groups import Groups
from .limits import Limits
from .queue import FairQueue
from .request import Deliver, Request, SettledText
from .stats import AdapterStatus, Stats

log = logging.getLogger(__name__)


class Core:
    """Queue, batches and adapters of one engine. Every method may be called from any thread; the device is touched by `_run` alone."""

    def __init__(self, engine: Engine, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.parts = EngineParts(engine)
        self.counters = Counters()
        self._queue: FairQueue[Request] = FairQueue()
        self._changed = threading.Condition()
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._audits: deque[Audit] = deque(maxlen=64)
        self._groups = Groups(self.parts, self.limits, self._on_frame, self._fail)
        self._running: tuple[Request, ...] = ()
        self._buckets: dict[str, int] = {}
        self._is_accepting, self._is_closing = True, False
        self._thread = threading.Thread(target=self._run, name="lad-device", daemon=True)
        self._thread.start()

    def submit(
        self,
        prompt: str | Prompt | Canvas,
        params: SamplingParams | None,
        deliver: Deliver,
        *,
        adapter: str | None = None,
        wants: str = "text",
        client: str = "",
        deadline_s: float | None = None,
        request_id: str | None = None,
    ) -> Request:
        """Lay a request out on the caller's thread and queue it; see `AsyncEngine.submit`."""
        now = time.monotonic()
        if wants not in WANTS:
            raise ConfigError(f"wants is {wants!r}, expected one of {', '.join(WANTS)}.")
        deadline_s = self.limits.deadline_s if deadline_s is None else deadline_s
        if deadline_s is not None and not deadline_s > 0:
            raise ConfigError(f"deadline_s is {deadline_s!r}, expected more than 0 seconds.")
        resident = self.parts.resident(adapter)
        params = self.parts.params(params, resident)
        canvas = self.parts.canvas(prompt, params, resident)
        self.parts.check(canvas, params)
        if self.limits.max_tokens is not None and canvas.length > self.limits.max_tokens:
            raise ConfigError(
                f"prompt and answer: {canvas.length} positions, expected at most {self.limits.max_tokens} (max_tokens). Shorten either."
            )
        deadline = None if deadline_s is None else now + deadline_s
        name = request_id or uuid.uuid4().hex[:16]
        request = Request(name, prompt, params, canvas, adapter, resident, wants, client, deadline, deliver, now)
        request.settled = SettledText(self.parts, canvas, params)
        with self._changed:
            self._admit_to_queue(request)
            self._changed.notify_all()
        return request

    def cancel(self, request: Request) -> None:
        """Take a request out at the next step boundary; nothing happens where it has ended."""
        with self._changed:
            request.is_cancelled = True
            self._changed.notify_all()

    def stats(self) -> Stats:
        """Return a snapshot of the counters."""
        with self._changed:
            return self.counters.snapshot(list(self._queue), self._running, self._buckets, self._is_accepting)

    def call(self, work: Callable[[], Any]) -> Future[Any]:
        """Let the device thread do something between two steps."""
        future: Future[Any] = Future()
        with self._changed:
            if self._is_closing:
                raise ClosedError("backend: it is closed, expected an open one. Make another.")
            self._calls.append((work, future))
            self._changed.notify_all()
        return future

    def load_adapter(self, name: str, path: str | Path) -> Future[AdapterStatus]:
        """Read an adapter on the caller's thread, and add or replace it on the device's."""
        if self.parts.store is None:
            raise ConfigError("adapters: this engine was loaded without any by name, expected some. Load it with adapters={name: path}.")
        incoming = read_incoming(path)

        def install() -> AdapterStatus:
            self.parts.residents.install(name, incoming)
            return self._status(self.parts.store.get(name))

        return self.call(install)

    def unload_adapter(self, name: str) -> Future[None]:
        """Take a name away from new requests between two steps."""

        self.parts.resident(name)
        return self.call(lambda: self.parts.residents.remove(name))

    def list_adapters(self) -> tuple[AdapterStatus, ...]:
        """Return every adapter by name."""
        return tuple(map(self._status, self.parts.store.residents())) if self.parts.store is not None else ()

    def drain(self, timeout_s: float | None = None) -> bool:
        """Refuse new requests and wait until all others have ended."""
        with self._changed:
            self._is_accepting = False
            return self._changed.wait_for(lambda: not self._queue and not self._running, timeout_s)

    def close(self) -> None:
        """Drain, fail what is left, and end the thread."""
        with self._changed:
            is_first, self._is_accepting = not self._is_closing, False
        if is_first:
            self.drain(self.limits.drain_s)
            with self._changed:
                self._is_closing = True
                self._changed.notify_all()
        self._thread.join()

    def _admit_to_queue(self, request: Request) -> None:
        if not self._is_accepting:
            raise ClosedError("backend: it takes no more requests (draining or closed), expected an open one. Ask another.")
        waiting = len(self._queue)
        tokens = sum(one.tokens for one in self._queue)
        most = self.limits.max_queued_tokens
        if waiting >= self.limits.max_queue or (waiting and most is not None and tokens + request.tokens > most):
            self.counters.refused += 1
            wait = self.counters.retry_after(waiting)
            raise OverloadError(f"queue: {waiting} requests wait already, expected fewer. Ask again in {wait:.1f} s.", wait)
        self.counters.submitted += 1
        self._queue.push(request.client, request)

    @torch.inference_mode()
    def _run(self) -> None:
        while True:
            try:
                with self._changed:
                    if not self._wait_for_work():
                        break
                self._do_calls()
                self._end_early()
                self._start()
                if self._running:
                    self._step()
                else:
                    self._audit()
            except Exception:
                # Nothing is expected to arrive here; were it to, requests must not hang on it.
                log.exception("the device thread's batches are dropped")
                self._groups.clear()
                # Not the batches' own: one that was being taken apart is in none of them.
                for request in self._running:
                    self._fail(request, StepError(f"request {request.id}: the backend dropped its batch; the log has the details."))
        self._shut()

    def _wait_for_work(self) -> bool:
        """Wait, under the lock, until there is something to do; False when the thread shall end."""
        while not (self._is_closing or self._calls or self._queue or self._running or self._audits):
            self._changed.wait()
        return not self._is_closing

    def _do_calls(self) -> None:
        while self._calls:
            with self._changed:
                work, future = self._calls.popleft()
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work())
                except Exception as error:  # noqa: BLE001 - it is the caller's, who waits for it
                    future.set_exception(error)

    def _end_early(self) -> None:
        """End what was cancelled, and what is past its deadline."""
        now = time.monotonic()

        def is_over(request: Request) -> bool:
            return request.is_cancelled or (request.deadline is not None and now >= request.deadline)

        over = [one for one in self._running if is_over(one)]
        for request in over:
            self._groups.remove(request)
        with self._changed:
            waiting = self._queue.take(is_over)
            self._running = (*self._running, *waiting)
        over += waiting
        for request in over:
            if request.is_cancelled:
                self._fail(request, RequestCancelledError(f"request {request.id}: it was cancelled."))
            else:
                asked = request.deadline - request.submitted
                where = "in the queue" if request.started is None else "while it was computed"
                self._fail(request, DeadlineError(f"request {request.id}: its deadline of {asked:g} s passed {where}."))

    def _start(self) -> None:
        """Take requests from the queue, in turn, as long as the next one fits what is free."""
        starting: list[Request] = []
        tokens = sum(one.tokens for one in self._running)
        with self._changed:
            while (request := self._queue.peek()) is not None:
                count = len(self._running) + len(starting)
                if count >= self.limits.max_running:
                    break
                if count and self.limits.max_tokens is not None and tokens + request.tokens > self.limits.max_tokens:
                    break
                tokens += request.tokens
                starting.append(self._queue.pop())
            # Counted as running at once: nobody may see them nowhere.
            self._running = (*self._running, *starting)
        ready = [request for request in starting if self._begins(request)]
        if ready:
            self._keep()
            self._groups.add(ready)

    def _begins(self, request: Request) -> bool:
        """Choose what a request is computed with, which stays until its end; False where it failed."""
        try:
            current = self.parts.resident(request.adapter)
            if current is not request.resident:
                canvas = self.parts.canvas(request.prompt, request.params, current)
                self.parts.check(canvas, request.params)
                request.canvas, request.resident = canvas, current
                request.settled = SettledText(self.parts, canvas, request.params)
        except LadError as error:
            self._fail(request, error)
            return False
        request.started = time.monotonic()
        version = request.resident.version if request.resident is not None else None
        return self._tell(request, Started(request.id, self._adapter_name(request), version, request.queued_ms))

    def _step(self) -> None:
        started = time.perf_counter()
        rows = self._groups.step(may_shrink=not self._queue)
        self.counters.stepped(rows, (time.perf_counter() - started) * 1e3)
        with self._changed:
            self.counters.retries, self._buckets = self._groups.retries, self._groups.describe()

    def _on_frame(self, request: Request, frame: Any, slot: int) -> bool:
        """Report one row's step; True where the request has ended."""
        try:
            return self._report(request, frame, slot)
        except Exception as error:  # noqa: BLE001 - reading one row out concerns its request alone
            self._fail(request, StepError(f"request {request.id}: reading its step failed with {type(error).__name__}: {error}."))
            return True

    def _report(self, request: Request, frame: Any, slot: int) -> bool:
        now = time.monotonic()
        request.first_step = request.first_step or now
        step, is_done = int(frame.row_steps[slot]) - 1, bool(frame.done[slot])
        if step >= request.next_step:
            request.next_step = step + 1
            if request.wants == "steps" and not self._tell_step(request, frame, slot, step):
                return True
            if request.wants != "result" and not is_done and (text := request.settled.grown(frame, slot)):
                if not self._tell(request, Committed(request.id, text)):
                    return True
        if is_done:
            self._finish(request, frame, slot)
        return is_done

    def _tell_step(self, request: Request, frame: Any, slot: int, step: int) -> bool:
        event = read_event(frame, slot, step, (time.monotonic() - request.started) * 1e3)
        if event is None:
            return True
        text = self.parts.answer(event.token_ids, request.canvas, request.params)
        return self._tell(request, Stepped(request.id, dataclasses.replace(event, index=0, text=text)))

    def _finish(self, request: Request, frame: Any, slot: int) -> None:
        run_ms = (time.monotonic() - request.started) * 1e3
        timings = {"first_step_ms": (request.first_step - request.started) * 1e3, "total_ms": run_ms}
        outcome = read_outcome(frame, slot)
        result = self.parts.result(outcome, request.canvas, request.params, timings, request.adapter)
        version = request.resident.version if request.resident is not None else None
        rest = request.settled.rest(result.text) if request.wants != "result" else ""
        if rest and not self._tell(request, Committed(request.id, rest)):
            return
        self._end(request, lambda: self.counters.finish(request, result, run_ms))
        if self.limits.audit_every and self.counters.finished % self.limits.audit_every == 0:
            self._audits.append(Audit(request.canvas, request.params, request.adapter, request.resident, result.token_ids))
        with contextlib.suppress(Exception):
            request.deliver(Finished(request.id, result, version, request.queued_ms, run_ms))

    def _fail(self, request: Request, error: LadError) -> None:
        if request.has_ended:
            return
        self._end(request, lambda: self.counters.fail(error))
        level = logging.INFO if isinstance(error, (RequestCancelledError, DeadlineError)) else logging.WARNING
        log.log(level, "request %s failed: %s", request.id, error, exc_info=error.__cause__)
        with contextlib.suppress(Exception):
            request.deliver(error)

    def _tell(self, request: Request, event: Event) -> bool:
        """Hand an event over; a reader that raises fails its own request alone. False where it did."""
        try:
            request.deliver(event)
        except Exception as error:  # noqa: BLE001 - the callback is the caller's
            self._fail(request, StepError(f"request {request.id}: reading its events raised {type(error).__name__}: {error}."))
            return False
        return True

    def _end(self, request: Request, count: Callable[[], None]) -> None:
        """Count a request's end and take it off the running ones at once, so that the counters always add up."""
        with self._changed:
            request.has_ended = True
            count()
            self._running = tuple(one for one in self._running if one is not request)
            self._changed.notify_all()
        self._keep()

    def _keep(self) -> None:
        """Tell the store what runs, which it must not overwrite."""
        if self.parts.store is not None:
            self.parts.store.keep([one.resident for one in self._running if one.started is not None])

    def _audit(self) -> None:
        """Recompute one finished answer alone, while nothing else is to do."""
        if self._audits and not self._queue:
            audit = self._audits.popleft()
            # A version that was replaced since is not there any more.
            if audit.resident is None or self.parts.store.holds(audit.resident):
                tokens = self.parts.solo(audit.canvas, audit.params, audit.resident)
                self.counters.audited += 1
                self.counters.flipped += tokens != audit.token_ids

    def _shut(self) -> None:
        """Fail everything that is left; nobody may wait for a thread that is gone."""
        self._groups.clear()
        with self._changed:
            left = [*self._queue.take(lambda _: True), *self._running]
            calls = list(self._calls)
            self._calls.clear()
        for request in left:
            self._fail(request, ClosedError(f"request {request.id}: the backend was closed before its answer. Ask another."))
        for _, future in calls:
            # Who waited may have given up.
            if future.set_running_or_notify_cancel():
                future.set_exception(ClosedError("backend: it was closed before this was done, expected an open one."))
        if self.parts.store is not None:
            self.parts.store.finish()

    def _adapter_name(self, request: Request) -> str | None:
        own = self.parts.engine.adapter_facts
        return request.adapter if self.parts.store is not None else own and own.name

    def _status(self, resident: Resident) -> AdapterStatus:
        running: dict[int, int] = {}
        for one in self._running:
            if one.resident is not None and one.resident.name == resident.name:
                running[one.resident.version] = running.get(one.resident.version, 0) + 1
        path = self.parts.residents.path(resident.name)
        return AdapterStatus(resident.name, resident.version, resident.facts.rank, path and str(path), running)
