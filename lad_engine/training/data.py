"""Instruction data as token ids: JSON Lines or a datasets id, filtered, rendered with the chat template, split by hash."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import TrainingError
from ..text.codec import TextCodec
from ..text.formats import PromptDefaults, prompt_ids
from ..text.prompts import Prompt, is_unicode

REPORT_EVERY = 2048
MOST_COPIES = 1e6


@dataclass(frozen=True)
class Source:
    """One data file or dataset and how many copies of it an epoch holds."""

    where: str
    weight: float


class Examples:
    """Tokenised examples packed in one array; `prompt(i)` and `answer(i)` are views, `key[i]` names the text for noise and split.

    weight: `[N]` float64 copies per epoch; label: `[N]` int64, place of the source; total: `[N]` int64 prompt + answer + one EOS.
    """

    def __init__(
        self,
        prompts: Sequence[np.ndarray],
        answers: Sequence[np.ndarray],
        keys: Sequence[int],
        weights: Sequence[float],
        labels: Sequence[int] | None = None,
    ) -> None:
        sizes = np.array([[len(p), len(a)] for p, a in zip(prompts, answers, strict=True)], dtype=np.int64).reshape(-1, 2)
        parts = [part for pair in zip(prompts, answers, strict=True) for part in pair]
        self.tokens = np.concatenate(parts) if parts else np.zeros(0, np.int32)
        self.ends = sizes.reshape(-1).cumsum().reshape(-1, 2)
        self.prompt_length, self.answer_length = sizes[:, 0], sizes[:, 1]
        self.total = sizes.sum(1) + 1
        self.key = np.array(keys, dtype=np.int64)
        self.weight = np.array(weights, dtype=np.float64)
        self.label = np.zeros(len(keys), np.int64) if labels is None else np.array(labels, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.key)

    def prompt(self, index: int) -> np.ndarray:
        end = self.ends[index, 0]
        return self.tokens[end - self.prompt_length[index] : end]

    def answer(self, index: int) -> np.ndarray:
        return self.tokens[self.ends[index, 0] : self.ends[index, 1]]


@dataclass(frozen=True)
class Limits:
    """Which examples are kept: see TrainConfig."""

    max_length: int
    max_prompt: int | None
    max_chars: int
    too_long: str
    system_prompt: str | None


def parse_source(text: str) -> Source:
    """Read "where" or "where=weight".

    Raises:
        TrainingError: the weight is not a number above 0 and at most MOST_COPIES.
    """
    where, separator, weight = text.rpartition("=")
    if not separator or Path(text).exists():
        return Source(text, 1.0)
    try:
        value = float(weight)
    except ValueError:
        value = 0.0
    if not 0.0 < value <= MOST_COPIES:
        raise TrainingError(f"data: weight of {where} is {weight!r}, expected a number above 0 and at most {MOST_COPIES:.0f}.")
    return Source(where, value)


def read_rows(source: Source) -> Iterator[dict[str, Any]]:
    """Yield the rows of a JSON Lines file (.jsonl, .jsonl.gz) or of "hf:id[:split]".

    Raises:
        TrainingError: the file is missing or a line is not an object with instruction and output.
    """
    if source.where.startswith("hf:"):
        yield from _hub_rows(source.where)
        return
    path = Path(source.where)
    try:
        # Editors on Windows begin a file with a byte order mark, which is no part of its first line.
        with gzip.open(path, "rt", encoding="utf-8-sig") if path.suffix == ".gz" else open(path, encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _row(line, f"{path.name} line {number}")
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise TrainingError(f"data: {path} cannot be read ({reason}). Give a JSON Lines file, .gz or not.") from error


def _row(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", error)
        raise TrainingError(f"data: {where} is not JSON ({reason}), expected one object a line. Correct it.") from error
    return _checked(row, where)


def _checked(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict) or not isinstance(row.get("instruction"), str) or not isinstance(row.get("output"), str):
        raise TrainingError(
            f'data: {where} lacks text fields, expected an object with "instruction", "output" and perhaps "input" and "system".'
        )
    for name in ("instruction", "input", "output", "system"):
        text = row.get(name)
        if text is not None and not (isinstance(text, str) and is_unicode(text)):
            raise TrainingError(f"data: {where}: {name} is {text!r}, expected text that UTF-8 can hold. Correct or remove it.")
    return row


def _hub_rows(where: str) -> Iterator[dict[str, Any]]:
    try:
        import datasets
    except ImportError as error:
        raise TrainingError(f"data: {where} needs the datasets package. Run: pip install datasets.") from error
    name, _, split = where[3:].partition(":")
    try:
        rows = datasets.load_dataset(name, split=split or "train")
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise TrainingError(f"data: {where} cannot be loaded ({str(error).splitlines()[0]}).") from error
    for number, row in enumerate(rows):
        yield _checked(dict(row), f"{where} row {number}")


def user_text(row: dict[str, Any]) -> str:
    """Return the user turn: the instruction, and the input on a new line where there is one."""
    extra = (row.get("input") or "").strip()
    return row["instruction"].strip() + (f"\n{extra}" if extra else "")


def text_key(row: dict[str, Any]) -> int:
    """Return a 62-bit name of the text: the same in every run, file and order; an empty system prompt names nothing."""
    text = f"{user_text(row)}\x00{row['output'].strip()}" + (f"\x00{row['system']}" if row.get("system") else "")
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 2


def load_examples(
    sources: Iterable[Source], codec: TextCodec, limits: Limits, val_share: float, on_progress: Callable[[int], None] = lambda _: None
) -> tuple[Examples, Examples, dict[str, int]]:
    """Read, filter, render and split all sources.

    An example is (prompt ids of the chat template with the assistant header, answer ids); it goes to validation where its text key
    falls in the lowest `val_share`, so the split survives added files and changed order.

    Returns:
        (training, validation, counts of what was kept and dropped and why).
    Raises:
        TrainingError: unreadable data, or nothing left to train on.
    """
    kept: tuple[list, list] = ([], [])
    counts = {"kept": 0, "empty": 0, "too_many_chars": 0, "too_long": 0, "repeated": 0}
    seen: set[int] = set()
    for place, source in enumerate(sources):
        for row in read_rows(source):
            reason, key = _refusal(row, limits, seen)
            if reason is None:
                prompt, answer = render(row, codec, limits.system_prompt)
                room = limits.max_length - len(prompt) - 1
                is_wide = room < 1 or (limits.max_prompt is not None and len(prompt) > limits.max_prompt)
                if is_wide or (len(answer) > room and limits.too_long == "drop"):
                    reason = "too_long"
                else:
                    kept[key / 2**62 < val_share].append((prompt, answer[:room], key, source.weight, place))
            counts[reason or "kept"] += 1
            if counts["kept"] % REPORT_EVERY == 0:
                on_progress(counts["kept"])
    if not kept[0]:
        raise _nothing_left(counts)
    train, validation = (Examples(*zip(*part, strict=True)) if part else Examples([], [], [], []) for part in kept)
    return train, validation, counts


def _nothing_left(counts: dict[str, int]) -> TrainingError:
    said = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in counts.items() if count) or "no rows"
    advice = "Give rows with an instruction and an output."
    if counts["kept"]:
        said, advice = f"{counts['kept']} for validation", "Lower val_share."
    elif counts["too_many_chars"] or counts["too_long"]:
        advice = "Raise max_chars." if counts["too_many_chars"] else "Raise max_length or max_prompt."
    return TrainingError(f"data: nothing is left to train on ({said}), expected at least one example. {advice}")


def render(row: dict[str, Any], codec: TextCodec, system_prompt: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Return prompt ids and answer ids (int32), tokenised apart and as at decoding time, under the row's own system prompt or the given."""
    prompt = prompt_ids(Prompt(user_text(row), system=row.get("system")), codec, PromptDefaults(system_prompt=system_prompt))
    return np.array(prompt, np.int32), np.array(codec.encode_continuation(row["output"].strip()), np.int32)


def _refusal(row: dict[str, Any], limits: Limits, seen: set[int]) -> tuple[str | None, int]:
    """Return why a row is dropped before tokenising (None: it is not) and its text key."""
    text, output, key = user_text(row), row["output"].strip(), text_key(row)
    if not text or not output:
        return "empty", key
    if len(text) + len(output) > limits.max_chars:
        return "too_many_chars", key
    if key in seen:
        return "repeated", key
    seen.add(key)
    return None, key
