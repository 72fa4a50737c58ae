"""The prompts a command line asks for: its argument, standard input, or a file of many."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from ..errors import ConfigError, RequestError
from ..text.prompts import Prompt


def read_prompts(arguments: argparse.Namespace, stdin: Callable[[], bytes]) -> list[Prompt]:
    """Return the prompts in order; `stdin` is only called where standard input was asked for.

    Raises:
        RequestError, ConfigError: naming the file, the line and what is wrong with it.
    """
    extras = {name: getattr(arguments, name) for name in ("system", "draft", "infill", "format") if getattr(arguments, name) is not None}
    if arguments.prompts is not None:
        if arguments.prompt is not None:
            raise ConfigError("PROMPT and --prompts are both given, expected one of them. Leave one out.")
        for name in ("draft", "infill"):
            if name in extras:
                raise ConfigError(f"--{name} is given with --prompts, expected a single PROMPT. Write {name} into the lines as JSON.")
        return _read_batch(arguments.prompts, extras, stdin)
    if arguments.prompt is None and arguments.infill is None:
        raise ConfigError('PROMPT is missing, expected a question. Give one in quotes, "-" for standard input, or --prompts FILE.')
    text = _decoded(stdin(), "standard input").rstrip("\n") if arguments.prompt == "-" else arguments.prompt
    return [Prompt(text=text, **extras)]


def _read_batch(name: str, extras: dict[str, str], stdin: Callable[[], bytes]) -> list[Prompt]:
    """One prompt per line; where the first line is a JSON object, every line is one. Blank lines are skipped."""
    text = _decoded(stdin(), "standard input") if name == "-" else read_text(Path(name), "--prompts")
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not lines:
        raise RequestError(f"--prompts: {name} holds no prompt, expected one per line. Fill it.")
    is_json = lines[0][1].lstrip().startswith("{")
    prompts = []
    for number, line in lines:
        try:
            prompts.append(Prompt.from_mapping({**extras, **_object(line)}) if is_json else Prompt(text=line.rstrip("\r"), **extras))
        except RequestError as error:
            raise RequestError(f"{name}, line {number}: {error}") from error
    return prompts


def read_text(path: Path, flag: str) -> str:
    """Return the text of a file a flag names; RequestError where it is missing, a folder, unreadable or not UTF-8."""
    if path.is_dir():
        raise RequestError(f"{flag}: {path} is a folder, expected a file. Name a file in it.")
    try:
        return _decoded(path.read_bytes(), str(path))
    except OSError as error:
        raise RequestError(
            f"{flag}: {path} cannot be read ({error.strerror or error}), expected a readable file. Check the path."
        ) from error


def _decoded(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(f"{where}: byte {error.start} is not UTF-8, expected UTF-8 text. Convert it.") from error


def _object(line: str) -> dict[str, object]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"it is not JSON ({error}), expected an object, as the first line is one. Correct it.") from error
    if not isinstance(value, dict):
        raise RequestError(f"it is a JSON {type(value).__name__}, expected an object. Correct it.")
    return value
