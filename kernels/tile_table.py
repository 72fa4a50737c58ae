"""Measured choices: for each GPU a committed table says which backend and which tile was fastest at a shape.

`tuned/<gpu>.json` is written by `bench/tune.py` on that GPU and by nothing else:

    {"schema": 1, "gpu": "NVIDIA H200", "conditions": {"commit": "...", "torch": "...", "triton": "..."},
     "choices": {"packed_attention": [
        {"model": {"H": 32, "G": 8, "K": 64, "dtype": "bfloat16"}, "size": {"B": 1, "T": 256},
         "backend": "triton", "config": {"BLOCK_M": 64, "num_warps": 4}, "us": {"triton": 5.0, "sdpa": 7.5}}]}}

`model` must match exactly; of the sizes the nearest counts, as long as it is within a factor of two. Elsewhere, and on a GPU without a
table, an op keeps its default backend, and a kernel's own formula (`launch_config`) chooses the tile.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from .op import Op

SCHEMA = 1
FOLDER = Path(__file__).parent / "tuned"
# The sum over all sizes of |log2(asked / measured)| up to which a measurement speaks for another shape.
REACH = 1.0


@dataclass(frozen=True)
class Choice:
    """The fastest way found to compute an op at one shape.

    model: widths, head counts and dtype, which must be equal; size: what varies between requests (B, T, rows).
    config: the tile for the backend's `configured(config)`, empty for its own formula. us: the median of every backend timed.
    """

    model: Mapping[str, int | str]
    size: Mapping[str, int]
    backend: str
    config: Mapping[str, int]
    us: Mapping[str, float]


@dataclass(frozen=True)
class TileTable:
    """The choices of one GPU, by op; conditions say what they were measured with."""

    gpu: str
    choices: Mapping[str, tuple[Choice, ...]]
    conditions: Mapping[str, Any] = field(default_factory=dict)

    def find(self, op: str, model: Mapping[str, int | str], size: Mapping[str, int]) -> Choice | None:
        """Return the choice measured nearest to a shape, the first of equals; None where nothing near was measured.

        Raises:
            ValueError: the names of model or size are not the table's.
        """
        best, nearest = None, REACH
        for choice in self.choices.get(op, ()):
            if set(model) != set(choice.model) or set(size) != set(choice.size):
                asked, known = sorted((*model, *size)), sorted((*choice.model, *choice.size))
                raise ValueError(f"tile_table: {op} is asked for by {', '.join(asked)}, expected {', '.join(known)}. Tune it again.")
            distance = sum(abs(math.log2(size[name] / choice.size[name])) for name in size)
            if dict(model) == dict(choice.model) and (distance < nearest or (best is None and distance == nearest)):
                best, nearest = choice, distance
        return best


def table_path(gpu: str, folder: Path = FOLDER) -> Path:
    """Return the file of a GPU by the name its driver gives: "NVIDIA H200" is nvidia_h200.json."""
    return folder / (re.sub(r"[^a-z0-9]+", "_", gpu.lower()).strip("_") + ".json")


@functools.cache
def table_for(device: str) -> TileTable | None:
    """Return the table of the GPU behind a torch device name; None for a CPU or where nobody has tuned that GPU."""
    if not device.startswith("cuda") or not torch.cuda.is_available():
        return None
    path = table_path(torch.cuda.get_device_name(device))
    return read_table(path) if path.exists() else None


def read_table(path: Path) -> TileTable:
    """Read and check a table.

    Raises:
        ValueError: what is not as above, by file, op and number of the choice.
    """
    return _checked(path, path.read_text(encoding="utf-8"))


def write_table(table: TileTable, folder: Path = FOLDER) -> Path:
    """Check a table and write it where `table_for` finds it, replacing the file whole; return its path.

    Raises:
        ValueError: as `read_table`.
    """
    path = table_path(table.gpu, folder)
    choices = {op: [asdict(choice) for choice in rows] for op, rows in table.choices.items()}
    content = {"schema": SCHEMA, "gpu": table.gpu, "conditions": dict(table.conditions), "choices": choices}
    text = json.dumps(content, indent=1) + "\n"
    _checked(path, text)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
    return path


def by_shape(op: Op, table: TileTable, fallback: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function with the op's contract that computes every shape as the table says, and with `fallback` where it says nothing.

    Raises:
        ValueError, ImportError: a choice names a backend or a tile that the op does not have, or one that cannot be imported.
    """
    rows = table.choices[op.name]
    if op.shape is None:
        raise ValueError(f"tile_table: {op.name} has {len(rows)} choices, expected none: its record says nothing to choose by.")
    prepared = [op.configured(choice.backend, choice.config) for choice in rows]

    @functools.cache
    def chosen(model: tuple, size: tuple) -> Callable[..., Any]:
        choice = table.find(op.name, dict(model), dict(size))
        return fallback if choice is None else prepared[rows.index(choice)]

    def run(*args: Any, **kwargs: Any) -> Any:
        model, size = op.shape(*args, **kwargs)
        return chosen(tuple(model.items()), tuple(size.items()))(*args, **kwargs)

    return run


def by_model(op: Op, is_wanted: Callable[[Mapping[str, Any]], bool], wanted: Callable[..., Any], other: Callable[..., Any]) -> Any:
    """Return a function with the op's contract that is `wanted` where the model of its shape fulfils `is_wanted`, and `other` elsewhere."""

    def run(*args: Any, **kwargs: Any) -> Any:
        return (wanted if is_wanted(op.shape(*args, **kwargs)[0]) else other)(*args, **kwargs)

    return run


def check_names(where: str, config: Mapping[str, int], own: Mapping[str, int]) -> None:
    """Raise ValueError unless a measured tile names exactly what the kernel's own launch configuration does."""
    if set(config) != set(own):
        raise ValueError(f"{where}: config names {', '.join(sorted(config))}, expected {', '.join(sorted(own))}. Tune it again.")


def _checked(path: Path, text: str) -> TileTable:
    try:
        raw = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path.name}: it is no JSON ({error}). Write it with bench/tune.py.") from error
    if not isinstance(raw, dict) or raw.get("schema") != SCHEMA:
        found = raw.get("schema") if isinstance(raw, dict) else type(raw).__name__
        raise ValueError(f"{path.name}: schema is {found!r}, expected {SCHEMA}. Write it again with bench/tune.py.")
    if not isinstance(raw.get("gpu"), str) or not isinstance(raw.get("choices"), dict):
        raise ValueError(f"{path.name}: its fields are {', '.join(raw)}, expected schema, gpu, conditions and choices by op.")
    if table_path(raw["gpu"], path.parent) != path:
        raise ValueError(f"{path.name}: gpu is {raw['gpu']!r}, expected the file {table_path(raw['gpu']).name}. Rename the file.")
    choices = {}
    for op, rows in raw["choices"].items():
        if not isinstance(rows, list):
            raise ValueError(f"{path.name}, {op}: choices are {type(rows).__name__}, expected a list.")
        choices[op] = tuple(_choice(f"{path.name}, {op}, choice {index}", row) for index, row in enumerate(rows))
        names = {(frozenset(choice.model), frozenset(choice.size)) for choice in choices[op]}
        if len(names) > 1:
            raise ValueError(f"{path.name}, {op}: its choices name {len(names)} kinds of shape, expected one. Tune it again.")
    return TileTable(raw["gpu"], choices, raw.get("conditions", {}))


def _choice(where: str, row: Any) -> Choice:
    expected = {"model": dict, "size": dict, "backend": str, "config": dict, "us": dict}
    if not isinstance(row, dict) or set(row) != set(expected):
        found = ", ".join(row) if isinstance(row, dict) else type(row).__name__
        raise ValueError(f"{where}: its fields are {found}, expected {', '.join(expected)}.")
    for name, kind in expected.items():
        if not isinstance(row[name], kind):
            raise ValueError(f"{where}: {name} is {row[name]!r}, expected a {'text' if kind is str else 'mapping'}.")
    for name, value in row["model"].items():
        _check(where, f"model {name}", value, isinstance(value, str) or _is_count(value), "a positive integer or a dtype")
    for name, value in row["size"].items():
        _check(where, f"size {name}", value, _is_count(value), "a positive integer")
    for name, value in row["config"].items():
        _check(where, f"config {name}", value, isinstance(value, int) and value >= 0, "an integer")
    for name, value in row["us"].items():
        _check(where, f"us {name}", value, isinstance(value, (int, float)) and 0 < value < math.inf, "microseconds above 0")
    _check(where, "backend", row["backend"], row["backend"] in row["us"], "one of those timed in us")
    return Choice(**row)


def _check(where: str, what: str, value: Any, holds: bool, expected: str) -> None:
    if not holds:
        raise ValueError(f"{where}: {what} is {value!r}, expected {expected}.")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
