"""The one form of a published figure: what was measured, on what, under which conditions, and how to read it back."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
CONDITIONS = ("commit", "date", "device", "device_kind", "cores", "threads", "versions")
# Fields of every row, None where a figure does not depend on them; a row adds its own and its "times".
SETTING = ("model", "dtype", "batch", "canvas", "answer_rows", "steps")
TIME_FIELDS = ("median_us", "min_us", "max_us", "repeats", "method")


def conditions() -> dict[str, Any]:
    """Return what a figure depends on besides its own settings: commit, hardware, versions, threads."""
    is_dirty = bool(_git("status", "--porcelain", "--untracked-files=no"))
    has_cuda = torch.cuda.is_available()
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    for package in ("triton", "transformers"):
        versions[package] = _version(package)
    if has_cuda:
        versions.update(cuda=torch.version.cuda, cudnn=torch.backends.cudnn.version())
    return {
        "commit": _git("rev-parse", "--short", "HEAD") + ("+changes" if is_dirty else ""),
        "date": time.strftime("%Y-%m-%d"),
        "device": torch.cuda.get_device_name() if has_cuda else _cpu_name(),
        "device_kind": "cuda" if has_cuda else "cpu",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "versions": versions,
    }


def make_result(bench: str, counted: str, rows: Iterable[Mapping[str, Any]], **more: Any) -> dict[str, Any]:
    """Return a checked result of this machine.

    Args:
        bench: the script's name. counted: one sentence, what lies inside the timed region.
        rows: one mapping per setting: SETTING's fields (those left out become None), "times" (name -> timing), and figures of its own.
    Raises:
        ValueError: a row that could not be read back.
    """
    whole = [{**dict.fromkeys(SETTING), "times": {}, **row} for row in rows]
    result = {"bench": bench, "counted": counted, **conditions(), **more, "rows": whole}
    check_result(result)
    return result


def check_result(result: Mapping[str, Any]) -> None:
    """Raise ValueError where `result` lacks a condition, a setting or a part of a timing."""
    missing = [name for name in ("bench", "counted", "rows", *CONDITIONS) if name not in result]
    if missing:
        raise ValueError(f"result: {', '.join(missing)} missing, expected every condition. Build it with make_result.")
    for index, row in enumerate(result["rows"]):
        absent = [name for name in (*SETTING, "times") if name not in row]
        if absent:
            raise ValueError(f"result {result['bench']}: row {index} lacks {', '.join(absent)}, expected every setting.")
        for name, timing in row["times"].items():
            if not set(TIME_FIELDS) <= set(timing):
                raise ValueError(f"result {result['bench']}: row {index}, {name} has {sorted(timing)}, expected {TIME_FIELDS}.")
            if not 0 < timing["min_us"] <= timing["median_us"] <= timing["max_us"]:
                raise ValueError(f"result {result['bench']}: row {index}, {name} is {timing}, expected 0 < min <= median <= max.")


def store(path: Path | None, result: Mapping[str, Any]) -> None:
    """Write the result to `path` where one is given, replaced whole, never half-written."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        partial.replace(path)


def write_result(path: Path | None, result: Mapping[str, Any]) -> None:
    """Store the result and print it as the last line of stdout."""
    store(path, result)
    print(json.dumps(result), flush=True)


def read_results(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """Return every result in `folder` in the order of file names; JSON files of another form are left out."""
    out = []
    for path in sorted(folder.glob("*.json")):
        value = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(value, dict) and "bench" in value and "rows" in value:
            check_result(value)
            out.append(value)
    return out


def device_slug() -> str:
    """Return the device's name as a file name: "nvidia_h200", "cpu"."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return "_".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "unknown"
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
