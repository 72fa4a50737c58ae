"""The one timer and the one description of conditions behind every published figure."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

REPOSITORY = Path(__file__).resolve().parent.parent


def interleaved_ms(runs: Mapping[str, Callable[[], object]], repeats: int = 7, warm_up: int = 2) -> dict[str, dict[str, float]]:
    """Time several callables in turns, so that a slow moment of the machine hits all of them.

    Returns:
        name -> {"median_ms", "min_ms", "max_ms", "repeats"}, wall-clock milliseconds of one call, synchronised on a GPU.
    """
    for _ in range(warm_up):
        for run in runs.values():
            run()
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            _synchronise()
            started = time.perf_counter()
            run()
            _synchronise()
            samples[name].append((time.perf_counter() - started) * 1e3)
    return {
        name: {"median_ms": statistics.median(times), "min_ms": min(times), "max_ms": max(times), "repeats": repeats}
        for name, times in samples.items()
    }


def conditions() -> dict[str, Any]:
    """Return what a figure depends on besides its own settings: commit, hardware, versions, threads."""
    is_dirty = bool(_git("status", "--porcelain", "--untracked-files=no"))
    return {
        "commit": _git("rev-parse", "--short", "HEAD") + ("+changes" if is_dirty else ""),
        "date": time.strftime("%Y-%m-%d"),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def write_result(path: Path | None, result: Mapping[str, Any]) -> None:
    """Print the result as the last line of stdout and, where asked for, store it (replaced whole, never half-written)."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        partial.replace(path)
    print(json.dumps(result))


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
