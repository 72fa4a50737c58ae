"""What a run shows and keeps: a metrics file, a live line with speed and time left, and a loss plot."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar


class MetricsFile:
    """JSON Lines, one object per report; on resume, lines after the checkpoint's step are dropped so that steps stay unique."""

    def __init__(self, path: Path, last_step: int) -> None:
        self.path = path
        if last_step == 0:
            path.unlink(missing_ok=True)
        elif path.exists():
            kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= last_step]
            partial = path.with_suffix(".partial")
            partial.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
            os.replace(partial, path)

    def write(self, values: dict[str, Any]) -> None:
        """Append one line."""
        rounded = {name: float(f"{value:.7g}") if isinstance(value, float) else value for name, value in values.items()}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(rounded) + "\n")

    def read(self) -> list[dict[str, Any]]:
        """Return all lines."""
        return [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()] if self.path.exists() else []


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")


class Progress:
    """Live line on a terminal (rich), one line per report elsewhere; silent when `is_shown` is False."""

    def __init__(self, steps: int, first_step: int, is_shown: bool) -> None:
        self.steps, self.first_step, self.is_shown = steps, first_step, is_shown
        self.begun, self.tokens = time.perf_counter(), 0
        self.bar, self.task = None, None
        if is_shown and sys.stderr.isatty():
            clocks = (TimeElapsedColumn(), TimeRemainingColumn())
            columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), *clocks, TextColumn("{task.fields[note]}"))
            self.bar = Bar(*columns, console=Console(stderr=True))
            self.task = self.bar.add_task("training", total=steps, completed=first_step, note="")
            self.bar.start()

    def advance(self, step: int, tokens: int) -> None:
        """Count one update of `tokens` canvas positions."""
        self.tokens += tokens
        if self.bar is not None:
            self.bar.update(self.task, completed=step)

    def tokens_per_s(self) -> float:
        """Return the mean speed since this process began training."""
        return self.tokens / max(time.perf_counter() - self.begun, 1e-9)

    def say(self, text: str) -> None:
        """Show one line above the bar."""
        if not self.is_shown:
            return
        if self.bar is not None:
            self.bar.console.print(text, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def report(self, values: dict[str, Any]) -> None:
        """Show a report: loss, rate, speed, time left."""
        speed, done = self.tokens_per_s(), values["step"] - self.first_step
        left_s = (time.perf_counter() - self.begun) / max(done, 1) * (self.steps - values["step"])
        note = f"loss {values['loss']:.3f}  {speed:.0f} tokens/s"
        if self.bar is not None:
            self.bar.update(self.task, note=note)
        else:
            self.say(f"step {values['step']}/{self.steps}  {note}  learning rate {values['learning_rate']:.2e}  {_clock(left_s)} left")

    def close(self) -> None:
        """Take the live line down."""
        if self.bar is not None:
            self.bar.stop()


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02d}:{int(seconds) % 60:02d}"


def plot_losses(lines: list[dict[str, Any]], path: Path, title: str) -> bool:
    """Draw training and validation losses over updates; False where matplotlib is not installed or there is nothing to draw."""
    try:
        import matplotlib
    except ImportError:
        return False
    trained = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    if not trained:
        return False
    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel="update", ylabel="cross-entropy (nats per token)", title=title)
    axes.plot(*zip(*trained, strict=True), color="0.6", linewidth=0.8, label="training")
    for name in sorted({name for line in lines for name in line if name.startswith("val_loss_")}):
        points = [(line["step"], line[name]) for line in lines if name in line]
        axes.plot(*zip(*points, strict=True), marker=".", label=f"validation, {name.removeprefix('val_loss_').replace('_', ' ')}")
    axes.legend(frameon=False)
    axes.grid(alpha=0.2)
    figure.savefig(path, dpi=120)
    return True
