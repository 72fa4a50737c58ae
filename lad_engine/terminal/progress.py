"""A progress bar for loads and downloads, shown once they take longer than a second, and silence from the libraries underneath."""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

PATIENCE_S = 1.0
LIBRARY_LOGGERS = ("transformers", "torch", "huggingface_hub", "httpx")
LIBRARY_SWITCHES = {"TRANSFORMERS_VERBOSITY": "error", "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1", "TOKENIZERS_PARALLELISM": "false"}


class LoadProgress:
    """A context in which `update(label, done, total)` feeds a bar on `console`; on anything but a terminal it shows nothing.

    `total` 0 means unknown. The bar also appears, without numbers, where nothing reports for a second (imports, merging).
    """

    def __init__(self, console: Console, label: str = "loading", patience_s: float = PATIENCE_S) -> None:
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TaskProgressColumn(),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
        )
        self._label, self._task = label, TaskID(0)
        self._is_shown, self._lock = False, threading.Lock()
        self._timer = threading.Timer(patience_s, self._show) if console.is_terminal else None

    def __enter__(self) -> LoadProgress:
        self._task = self._progress.add_task(self._label, total=None)
        if self._timer is not None:
            self._timer.daemon = True
            self._timer.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        with self._lock:
            if self._is_shown:
                self._progress.stop()
            # A timer that fires late must not draw over the answer.
            self._is_shown = True

    def update(self, label: str, done: int, total: int) -> None:
        """Show `done` of `total` under `label`; a new label starts a new bar."""
        if label != self._label:
            self._progress.reset(self._task, total=total or None, description=label)
            self._label = label
        self._progress.update(self._task, completed=done, total=total or None)

    def _show(self) -> None:
        with self._lock:
            if not self._is_shown:
                self._is_shown = True
                self._progress.start()


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep warnings and bars of the libraries underneath off the screen, through their own documented switches; restored on leaving."""
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        for name, value in LIBRARY_SWITCHES.items():
            # Read when the library is first imported; a value the user has set stands.
            if name not in os.environ:
                os.environ[name] = value
                stack.callback(os.environ.pop, name, None)
        for logger in map(logging.getLogger, LIBRARY_LOGGERS):
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.ERROR)
        yield


@contextmanager
def notes_on(console: Console) -> Iterator[None]:
    """Print our own warnings as `note:` lines on `console` and nowhere else, until leaving."""
    logger, handler = logging.getLogger("lad_engine"), NoteHandler(console)
    propagates = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagates


class NoteHandler(logging.Handler):
    """Prints our own log records as one `note:` line each."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.WARNING)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.print(f"note: {record.getMessage()}", style="dim", markup=False, highlight=False, soft_wrap=True)
