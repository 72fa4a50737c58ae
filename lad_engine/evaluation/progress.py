"""How far an evaluation is and how long it still takes, on one line."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TextIO

INTERVAL_S = 2.0


class Countdown:
    """Counts examples over all conditions; on a terminal the line is redrawn, elsewhere one is printed each half minute."""

    def __init__(self, out: TextIO, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._out, self.total, self._clock = out, total, clock
        self._is_terminal = out.isatty()
        self.label = ""
        self._done = self._worked = 0
        self._started = self._shown = clock()

    def tick(self, examples: int, is_known: bool) -> None:
        """Count examples; those found in an earlier run took no time and say nothing about the rest."""
        self._done += examples
        self._worked += 0 if is_known else examples
        now, interval = self._clock(), INTERVAL_S if self._is_terminal else 15 * INTERVAL_S
        if now - self._shown >= interval or self._done >= self.total:
            self._shown = now
            self._out.write(f"\r{self.line(now)}\x1b[K" if self._is_terminal else self.line(now) + "\n")
            self._out.flush()

    def line(self, now: float) -> str:
        """Return the line: what runs, how many are done, how long the rest takes at the pace so far."""
        text = f"{self.label}: {self._done} of {self.total} examples"
        if self._worked and self._done < self.total:
            text += f", {_clock_time((now - self._started) / self._worked * (self.total - self._done))} left"
        return text

    def close(self) -> None:
        """End the line on a terminal."""
        if self._is_terminal:
            self._out.write("\n")


def _clock_time(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"
