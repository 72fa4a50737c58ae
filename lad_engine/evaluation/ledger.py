"""Finished examples on disk: one JSON line each, under a key that names every setting, so that nothing is computed twice."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .sets import Example

# Raised when a prompt, a rule of extraction or a metric changes its meaning.
FORM = 1

Row = dict[str, Any]


def settings_key(settings: Mapping[str, Any]) -> str:
    """Return a short hash of everything a result depends on; mappings compare by content."""
    text = json.dumps({"form": FORM, **settings}, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def fingerprint(example: Example) -> str:
    """Return a short hash of everything an example says: a set that is corrected, or comes from elsewhere, may keep its ids."""
    text = json.dumps(dataclasses.asdict(example), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Ledger:
    """Appends finished examples to a file and knows those of earlier runs; None keeps them in memory only.

    A last line that an interruption cut short is dropped. An example that says something else than it did is done again.
    Raises:
        ConfigError: the file cannot be read or written.
    """

    def __init__(self, path: str | Path | None) -> None:
        self._path = None if path is None else Path(path)
        # A line of an earlier form has no fingerprint.
        self._rows: dict[tuple[str, str], tuple[Row, str | None]] = {}
        if self._path is not None and self._path.is_file():
            self._read(self._path)

    def run(
        self,
        key: str,
        examples: Sequence[Example],
        work: Callable[[Sequence[Example]], list[Row]],
        batch_size: int,
        tick: Callable[[int, bool], None],
    ) -> list[Row]:
        """Return one row per example, in order; `work` is called with the batches that are not all there yet.

        A batch is always the same examples, so that a result does not depend on where a run was interrupted.
        tick: called with (examples, whether they were found) after each batch.
        """
        rows: list[Row] = []
        for start in range(0, len(examples), batch_size):
            batch = examples[start : start + batch_size]
            found = [self._known(key, example) for example in batch]
            is_known = all(row is not None for row in found)
            if not is_known:
                # Through JSON, so that a first run and a resumed one give the same numbers to the last digit.
                found = [json.loads(json.dumps(row, ensure_ascii=False)) for row in work(batch)]
                self._append(key, batch, found)
            rows += found
            tick(len(batch), is_known)
        return rows

    def _known(self, key: str, example: Example) -> Row | None:
        row, said = self._rows.get((key, example.id), (None, None))
        return row if said in (None, fingerprint(example)) else None

    def _append(self, key: str, batch: Sequence[Example], rows: list[Row]) -> None:
        lines = []
        for example, row in zip(batch, rows, strict=True):
            said = fingerprint(example)
            self._rows[key, example.id] = row, said
            lines.append(json.dumps({"key": key, "id": example.id, "example": said, "row": row}, ensure_ascii=False) + "\n")
        if self._path is not None:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with self._path.open("a", encoding="utf-8") as file:
                    file.writelines(lines)
            except OSError as error:
                raise ConfigError(f"out: {self._path} cannot be written ({error.strerror}). Choose another --out.") from error

    def _read(self, path: Path) -> None:
        try:
            # Bytes: an answer may hold what str.splitlines takes for the end of a line, and a cut may fall inside a character.
            finished, newline, rest = path.read_bytes().rpartition(b"\n")
            if rest:
                with path.open("r+b") as file:
                    file.truncate(len(finished) + len(newline))
        except OSError as error:
            raise ConfigError(f"out: {path} cannot be read ({error.strerror}). Choose another --out.") from error
        for number, line in enumerate(finished.split(b"\n") if finished else (), start=1):
            try:
                item = json.loads(line)
                self._rows[item["key"], item["id"]] = item["row"], item.get("example")
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ConfigError(f"out: {path} line {number} is no finished example ({error}). Remove the file to start anew.") from error
