"""Answers to a list of prompts as a text file that a person reads, with the command that made it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import SamplingParams
from ..errors import ConfigError
from ..text.prompts import Prompt
from .sets import Example

if TYPE_CHECKING:
    from ..engine import Engine


def write_samples(out: Path, command: str, engine: Engine, examples: Sequence[Example], params: SamplingParams, batch_size: int) -> None:
    """Decode every prompt and write prompt, answer and steps taken.

    Raises:
        ConfigError: the file cannot be written.
    """
    results = []
    for start in range(0, len(examples), batch_size):
        results += engine.generate([Prompt(example.prompt) for example in examples[start : start + batch_size]], params)
    defaults = SamplingParams()
    changed: dict[str, Any] = {
        field.name: getattr(params, field.name)
        for field in dataclasses.fields(params)
        if field.name in ("max_new_tokens", "steps", "remasking") or getattr(params, field.name) != getattr(defaults, field.name)
    }
    settings = ", ".join(f"{name} {value}" for name, value in changed.items())
    adapter = engine.adapter_facts
    who = f"model {engine.facts.name}, adapter {adapter.name if adapter else 'none'}, {engine.config.dtype}"
    who += f', system prompt "{adapter.system_prompt}"' if adapter and adapter.system_prompt else ""
    lines = [f"$ {command}", f"{who}; {settings}", ""]
    for number, (example, result) in enumerate(zip(examples, results, strict=True), start=1):
        lines += [f"{number}. {example.prompt}", f"   {' / '.join(result.text.splitlines())}", f"   ({result.nfe} passes)", ""]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text("\n".join(lines), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"out: {out} cannot be written ({error.strerror}). Choose another --out.") from error
