"""Results as files: one JSON with every condition, a Markdown table, and plots."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..adapters.whole_files import whole_file
from ..errors import ConfigError
from .plots import plot_convergence, plot_quality

COLUMNS = {
    "accuracy": "accuracy",
    "accuracy_per_character": "per character",
    "answered": "answered",
    "pass_at_1": "pass@1",
    "rouge_1": "ROUGE-1",
    "rouge_2": "ROUGE-2",
    "rouge_l": "ROUGE-L",
    "target_perplexity": "target PPL",
    "perplexity": "judge PPL",
    "distinct_1": "distinct-1",
    "distinct_2": "distinct-2",
    "distinct_3": "distinct-3",
    "repetition": "repetition",
    "nfe": "NFE",
    "tpf": "TPF",
    "settled_at": "settled at",
}
DECIMALS = {"perplexity": 1, "target_perplexity": 1, "nfe": 1, "settled_at": 1, "tpf": 2}


def write_report(out: Path, command: str, records: Sequence[Mapping[str, Any]], more: Mapping[str, Any] | None = None) -> list[Path]:
    """Write `<out>` (JSON), `<out stem>.md` and, with matplotlib, the plots; returns the paths written.

    The JSON holds no date and no time taken: the same command on the same machine gives the same bytes.
    Raises:
        AdapterError, ConfigError: the folder cannot be written, or `out` is no regular file.
    """
    result = {
        "command": command,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        **(more or {}),
        "conditions": [{name: value for name, value in record.items() if name != "rows"} for record in records],
    }
    table = out.with_suffix(".md")
    _write_json(out, result)
    try:
        table.write_text(markdown(command, records), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"out: {table} cannot be written ({error.strerror}). Choose another --out.") from error
    open_records = [record for record in records if record["task"] == "open"]
    plots = (
        plot_quality(out.with_suffix(".quality.png"), open_records),
        plot_convergence(out.with_suffix(".convergence.png"), open_records),
    )
    return [out, table, *(path for path in plots if path is not None)]


def write_trials(out: Path, command: str, trials: Sequence[Mapping[str, Any]]) -> Path:
    """Write every candidate of a search for a profile to `out` (JSON) and return it.

    Raises:
        AdapterError: the file cannot be written, or is no regular one.
    """
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    _write_json(out, {"command": command, "versions": versions, "trials": list(trials)})
    return out


def _write_json(out: Path, result: Mapping[str, Any]) -> None:
    with whole_file(out) as temporary:
        temporary.write_text(json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def markdown(command: str, records: Sequence[Mapping[str, Any]]) -> str:
    """Return one table per task: a condition per line, 95 % intervals in brackets."""
    lines = [f"`{command}`", ""]
    for task in dict.fromkeys(record["task"] for record in records):
        own = [record for record in records if record["task"] == task]
        columns = [name for name in COLUMNS if any(name in record["metrics"] for record in own)]
        lines += [f"### {task}", "", "| condition | n | " + " | ".join(COLUMNS[name] for name in columns) + " |"]
        lines.append("|---|---:|" + "---|" * len(columns))
        for record in own:
            cells = (shown(name, record["metrics"].get(name)) for name in columns)
            lines.append(f"| {record['condition']} | {record['examples']} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def shown(name: str, metric: Mapping[str, Any] | None) -> str:
    """Return a metric as `value [low, high]`, as far as there are such."""
    if metric is None or metric["value"] is None:
        return ""
    digits = DECIMALS.get(name, 3)
    text = f"{metric['value']:.{digits}f}"
    return text if metric["low"] is None else f"{text} [{metric['low']:.{digits}f}, {metric['high']:.{digits}f}]"
