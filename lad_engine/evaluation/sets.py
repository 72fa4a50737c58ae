"""Evaluation sets: read from a folder of JSON Lines, or fetched with Hugging Face `datasets`; subsets in an order that never changes."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .hub_sets import HUB_SETS, fetch

ENDINGS = (".jsonl.gz", ".jsonl")


@dataclass(frozen=True)
class Example:
    """One item: `choices` and `label` of a multiple choice, `answers` that are accepted elsewhere; `more` holds a set's own fields."""

    id: str
    prompt: str
    choices: tuple[str, ...] = ()
    label: int | None = None
    answers: tuple[str, ...] = ()
    more: Mapping[str, Any] = field(default_factory=dict)


def load_set(name: str, folder: str | Path | None) -> list[Example]:
    """Return all examples of a set: `<folder>/<name>.jsonl(.gz)` where it is, else from the hub.

    Raises:
        ConfigError: neither place has it (the sentence names both), or a line is no example.
    """
    looked = [Path(folder) / f"{name}{ending}" for ending in ENDINGS] if folder is not None else []
    for path in looked:
        if path.is_file():
            return _read(path)
    reason = f"{name} has no free copy on the hub"
    if name in HUB_SETS:
        try:
            return [_example(row, f"{HUB_SETS[name].repository} row {number}") for number, row in enumerate(fetch(name))]
        except (ImportError, OSError, ValueError, RuntimeError, KeyError) as error:
            reason = f"{HUB_SETS[name].repository} on the hub: {type(error).__name__}: {' '.join(str(error).split())[:160]}"
    places = " or ".join(map(str, looked)) or "no folder (--data is not given)"
    raise ConfigError(f"data: the set {name} is not there, looked for {places}; {reason}. Give --data DIR with {name}.jsonl.gz.")


def subset(examples: Sequence[Example], limit: int | None) -> list[Example]:
    """Return `limit` examples, the same ones everywhere: those whose id hashes lowest, in that order (None: all of them)."""
    ordered = sorted(examples, key=lambda example: hashlib.sha256(example.id.encode()).hexdigest())
    return ordered[:limit]


def read_questions(path: str | Path) -> list[Example]:
    """Return one example per line of a text file of prompts; empty lines and lines that begin with # are left out.

    Raises:
        ConfigError: the file cannot be read, or holds no prompt or one prompt twice.
    """
    try:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"prompts: {path} cannot be read ({error}), expected a text file with one prompt per line. Check it.") from error
    lines = [line for line in lines if line and not line.startswith("#")]
    if not lines or len(set(lines)) < len(lines):
        raise ConfigError(f"prompts: {path} holds {'a prompt twice' if lines else 'none'}, expected different prompts, one per line.")
    return [Example(line, line) for line in lines]


def _read(path: Path) -> list[Example]:
    opened = gzip.open if path.name.endswith(".gz") else open
    try:
        with opened(path, "rt", encoding="utf-8") as file:
            examples = [_example(json.loads(line), f"{path} line {number}") for number, line in enumerate(file, start=1) if line.strip()]
    except (OSError, EOFError, ValueError) as error:
        raise ConfigError(f"data: {path} cannot be read ({error}), expected JSON Lines. Fetch it again.") from error
    if len({example.id for example in examples}) < len(examples) or not examples:
        raise ConfigError(f"data: {path} is empty or holds an id twice, expected examples with ids of their own. Fetch it again.")
    return examples


def _example(row: Any, where: str) -> Example:
    known = ("id", "prompt", "choices", "label", "answers")
    if not isinstance(row, Mapping) or not all(isinstance(row.get(name), str) for name in ("id", "prompt")):
        raise ConfigError(f"data: {where} is no example, expected an object with id and prompt. Correct it.")
    listed = {name: row.get(name, ()) for name in ("choices", "answers")}
    for name, values in listed.items():
        if not isinstance(values, (list, tuple)) or not all(isinstance(value, str) for value in values):
            raise ConfigError(f"data: {where}: {name} is {values!r}, expected a list of texts. Correct it.")
    label, count = row.get("label"), len(listed["choices"])
    if count and (isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < count):
        raise ConfigError(f"data: {where}: label is {label!r}, expected the place of the right choice, 0 to {count - 1}. Correct it.")
    more = {name: value for name, value in row.items() if name not in known}
    return Example(row["id"], row["prompt"], tuple(listed["choices"]), label, tuple(listed["answers"]), more)
