"""What `lad_engine.evaluate` found, as the README shows it: an adapter beside its base, and fluency against steps."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lad_engine.evaluation.report import COLUMNS, shown

# A task's figure is the first of these that it has.
FIGURES = ("accuracy", "pass_at_1", "rouge_l")
SHOWN_OF_OPEN = ("perplexity", "distinct_2", "repetition", "nfe")
OPEN = "open"
# Fewer examples a task prove the command and say little about an adapter.
LEAST_EXAMPLES = 200
Record = Mapping[str, Any]
Evaluation = Mapping[str, Any]


def quality_tables(folder: Path) -> list[str]:
    """Return a table per evaluation in `folder` that has tasks of LEAST_EXAMPLES or more, and one per evaluation of open prompts."""
    out = []
    for path in sorted(folder.glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        if "conditions" not in found:
            continue
        tasks = [record for record in found["conditions"] if record["task"] != OPEN and record["examples"] >= LEAST_EXAMPLES]
        answers = [record for record in found["conditions"] if record["task"] == OPEN]
        out += [_tasks_table(found, tasks)] if tasks else []
        out += [_open_table(found, answers)] if answers else []
    return out


def verdict(ours: Mapping[str, Any], theirs: Mapping[str, Any], difference: Mapping[str, Any] | None = None) -> str:
    """Say which of two figures is higher, where the 95 % interval of their difference leaves out zero.

    Without the difference of each example, which later evaluations record, the interval is put together from those of the two figures as if
    they were of different examples (Newcombe 1998); two intervals that overlap do not mean that there is no difference.
    """
    if difference is not None:
        low, high = difference["low"], difference["high"]
    else:
        gap = ours["value"] - theirs["value"]
        low = gap - math.hypot(ours["value"] - ours["low"], theirs["high"] - theirs["value"])
        high = gap + math.hypot(ours["high"] - ours["value"], theirs["value"] - theirs["low"])
    return "ahead" if low > 0 else "behind" if high < 0 else "no clear difference"


def _tasks_table(evaluation: Evaluation, records: Sequence[Record]) -> str:
    names = list(dict.fromkeys(record["condition"] for record in records))
    head = ["task", "figure", "examples", *names, f"{names[0]} against {names[1]}" if len(names) > 1 else ""]
    rows = []
    for task in dict.fromkeys(record["task"] for record in records):
        of_task = {record["condition"]: record for record in records if record["task"] == task}
        figure = next(name for name in FIGURES if any(name in record["metrics"] for record in of_task.values()))
        metrics = [of_task[name]["metrics"].get(figure) if name in of_task else None for name in names]
        compared = ""
        if len(metrics) > 1 and metrics[0] and metrics[1]:
            paired = of_task[names[0]].get("difference", {})
            difference = paired["metrics"].get(figure) if paired.get("from") == names[1] else None
            compared = verdict(metrics[0], metrics[1], difference)
        count = str(max(record["examples"] for record in of_task.values()))
        rows.append([task, COLUMNS[figure], count, *(shown(figure, metric) for metric in metrics), compared])
    return _table("Tasks", evaluation, head, rows)


def _open_table(evaluation: Evaluation, records: Sequence[Record]) -> str:
    rows = [
        [record["condition"], str(record["examples"]), *(shown(name, record["metrics"].get(name)) for name in SHOWN_OF_OPEN)]
        for record in records
    ]
    return _table("Fluency against steps", evaluation, ["condition", "prompts", *(COLUMNS[name] for name in SHOWN_OF_OPEN)], rows)


def _table(title: str, evaluation: Evaluation, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [
        f"#### {title}",
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
        *("| " + " | ".join(row) + " |" for row in rows),
    ]
    versions = ", ".join(f"{name} {version}" for name, version in evaluation["versions"].items())
    return "\n".join([*lines, "", f"*95 % intervals in brackets. {versions}. `{evaluation['command']}`*"])
