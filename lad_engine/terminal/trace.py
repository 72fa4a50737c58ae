"""The refinement trace: JSON Lines with a header, every step, every token's history and the result, readable without a model."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import secrets
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from ..config import SamplingParams
from ..contracts import GenerationResult, StepEvent
from ..errors import RequestError
from ..text.prompts import Prompt
from .requests import read_text

FORMAT, VERSION = "lad-trace", 1
# A letter no UTF-8 holds (of a folder's name, say) becomes its JSON escape.
TEXT: dict[str, Any] = {"encoding": "utf-8", "errors": "backslashreplace"}
# What is read of each record when a trace is played.
NEEDED: dict[str, dict[str, Any]] = {
    "header": {"index": int, "prompt": dict, "mask_id": int, "eos_ids": list},
    "step": {"index": int, "step": int, "steps": int, "elapsed_ms": (int, float), "token_ids": list, "confidences": list, "status": list},
    "result": {"text": str, "nfe": int, "steps": int, "stopped_early": bool, "timings": dict},
}
EVENT_FIELDS = tuple(event_field.name for event_field in dataclasses.fields(StepEvent))


def result_record(result: GenerationResult, load_ms: float) -> dict[str, Any]:
    """Return the object --json prints; milliseconds in `timings`."""
    return {
        "text": result.text,
        "token_ids": list(result.token_ids),
        "confidences": [_number(value) for value in result.confidences],
        "nfe": result.nfe,
        "tpf": _number(result.tpf),
        "steps": result.steps,
        "stopped_early": result.stopped_early,
        "finish_reason": result.finish_reason,
        "timings": {name: round(value, 3) for name, value in {"load_ms": load_ms, **result.timings}.items()},
        "model": result.model,
        "adapter": result.adapter,
        "profile": result.profile,
        "seed": result.seed,
        "dtype": result.dtype,
        "precision": result.precision,
        "device": result.device,
        "ops": dict(result.ops),
    }


class TraceWriter:
    """A context that writes a trace beside its final place and moves it there only when everything is in it.

    Lines, each with "type" and the sequence's "index": "header" (prompt, settings, mask_id, eos_ids), "step" (a StepEvent; "pieces" maps
    ids not seen before to their text), "token" (per position: first_set, last_changed, confidence per step), "result" (what --json prints).
    Raises RequestError where the file cannot be written; nothing is left behind then.
    """

    def __init__(self, path: str | Path, piece: Callable[[int], str], mask_id: int, eos_ids: Collection[int]) -> None:
        self._path, self._piece, self._mask_id, self._eos_ids = Path(path), piece, mask_id, list(eos_ids)
        self._confidences: dict[int, list[list[float | None]]] = {}
        self._seen: set[tuple[int, int]] = set()
        self._file: IO[str] | None = None

    def __enter__(self) -> TraceWriter:
        check_writable(self._path)
        try:
            self._file = self._path.with_name(f".{self._path.name}.{secrets.token_hex(4)}.part").open("x", **TEXT)
        except OSError as error:
            raise _unwritable(self._path, error) from error
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._file is not None, "the writer is used as a context"
        partial = Path(self._file.name)
        try:
            self._file.close()
            if kind is None:
                os.replace(partial, self._path)
        except OSError as failure:
            raise _unwritable(self._path, failure) from failure
        finally:
            partial.unlink(missing_ok=True)

    def header(self, index: int, prompt: Prompt, params: SamplingParams) -> None:
        """Begin a sequence."""
        asked = {name: value for name, value in dataclasses.asdict(prompt).items() if value is not None}
        self._write(
            {"type": "header", "format": FORMAT, "version": VERSION, "index": index, "prompt": asked, "mask_id": self._mask_id}
            | {"eos_ids": self._eos_ids, "settings": dataclasses.asdict(params)}
        )

    def step(self, event: StepEvent) -> None:
        """Add one step of a sequence."""
        record = {name: getattr(event, name) for name in EVENT_FIELDS}
        record["confidences"] = [_number(value) for value in event.confidences]
        record["elapsed_ms"] = round(event.elapsed_ms, 3)
        fresh = dict.fromkeys(token for token in (*event.token_ids, *event.predicted_ids) if (event.index, token) not in self._seen)
        self._seen.update((event.index, token) for token in fresh)
        record["pieces"] = {str(token): self._piece(token) for token in fresh}
        self._confidences.setdefault(event.index, []).append(record["confidences"])
        self._write({"type": "step", **record})

    def result(self, index: int, result: GenerationResult, load_ms: float) -> None:
        """Finish a sequence: its tokens' histories, then the result."""
        steps = self._confidences.pop(index, [])
        for position, (token, (first, last)) in enumerate(zip(result.token_ids, result.step_map, strict=True)):
            history = [values[position] if position < len(values) else None for values in steps]
            record = {"type": "token", "index": index, "position": position, "token_id": token, "piece": self._piece(token)}
            self._write({**record, "first_set": first, "last_changed": last, "confidence": history})
        self._write({"type": "result", "index": index, **result_record(result, load_ms)})

    def _write(self, record: Mapping[str, Any]) -> None:
        assert self._file is not None, "the writer is used as a context"
        try:
            self._file.write(json.dumps(record, ensure_ascii=False) + "\n")
        except OSError as error:
            raise _unwritable(self._path, error) from error


@dataclass
class TracedSequence:
    """One sequence of a trace: its header, its steps and its result, in the order they were written."""

    header: dict[str, Any]
    pieces: dict[int, str] = field(default_factory=dict)
    events: list[StepEvent] = field(default_factory=list)
    tokens: list[dict[str, Any]] = field(default_factory=list)
    result: dict[str, Any] | None = None


def read_trace(path: str | Path) -> list[TracedSequence]:
    """Return the sequences of a trace file; RequestError names the line that is not one."""
    path = Path(path)
    sequences: dict[int, TracedSequence] = {}
    # Not splitlines: a piece of text may hold a line separator that JSON does not escape.
    for number, line in enumerate(read_text(path, "--replay").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            _take(record, sequences)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise RequestError(f"--replay: {path}, line {number} is no trace record ({error}), expected a file --trace wrote.") from error
    if not any(sequence.events for sequence in sequences.values()):
        raise RequestError(f"--replay: {path} holds no steps, expected a file --trace wrote.")
    return [sequences[index] for index in sorted(sequences)]


def check_writable(path: Path) -> None:
    """Raise RequestError where no file can be written at `path`; called before anything slow is done."""
    if path.is_dir():
        raise RequestError(f"--trace: {path} is a folder, expected a file. Name a file in it.")
    if path.exists() and not path.is_file():
        # A device would be replaced by a file of its name.
        raise RequestError(f"--trace: {path} is no regular file, expected one or a new name. Choose another.")
    if not path.parent.is_dir():
        raise RequestError(f"--trace: the folder {path.parent} does not exist, expected one. Make it first.")
    if not os.access(path.parent, os.W_OK):
        raise RequestError(f"--trace: the folder {path.parent} cannot be written, expected one that can. Choose another.")


def _take(record: dict[str, Any], sequences: dict[int, TracedSequence]) -> None:
    kind, index = record["type"], record["index"]
    for name, needed in NEEDED.get(kind, {}).items():
        if not isinstance(record[name], needed):
            raise TypeError(f"{name} is {record[name]!r}")
    if kind == "header":
        if record["format"] != FORMAT or record["version"] != VERSION:
            raise ValueError(f"format {record['format']} {record['version']}, expected {FORMAT} {VERSION}")
        sequences[index] = TracedSequence(record)
        return
    sequence = sequences[index]
    if kind == "step":
        sequence.pieces.update({int(token): text for token, text in record["pieces"].items()})
        record["confidences"] = [0.0 if value is None else value for value in record["confidences"]]
        values = {name: tuple(record[name]) if isinstance(record[name], list) else record[name] for name in EVENT_FIELDS}
        sequence.events.append(StepEvent(**values))
    elif kind == "token":
        sequence.tokens.append(record)
    elif kind == "result":
        sequence.result = {name: value for name, value in record.items() if name not in ("type", "index")}
    else:
        raise ValueError(f"type {kind!r}")


def _number(value: float) -> float | None:
    return round(float(value), 6) if math.isfinite(value) else None


def _unwritable(path: Path, error: OSError) -> RequestError:
    return RequestError(f"--trace: {path} cannot be written ({error.strerror or error}), expected a writable place. Choose another file.")
