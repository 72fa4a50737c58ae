"""Run tasks under conditions and turn finished examples into metrics with confidence intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError
from ..requests import prompt_defaults
from ..text.formats import prompt_ids
from . import intervals
from .conditions import Condition, answer_task, identity
from .ledger import Ledger, Row, settings_key
from .likelihood import exact, exact_single_tokens, masked
from .progress import Countdown
from .sets import Example
from .tasks import Task

# Families whose training loss bounds the likelihood of an answer.
BOUNDED = ("lad", "masked")


@dataclass(frozen=True)
class Work:
    """One cell of the table: examples of a task (or of the prompts) under one condition.

    settings: what the numbers depend on, recorded beside them; answer: makes rows of a batch; summarise: metrics of all rows.
    """

    task: str
    condition: Condition
    examples: Sequence[Example]
    settings: Mapping[str, Any]
    answer: Callable[[Sequence[Example]], list[Row]]
    summarise: Callable[[list[Row]], dict[str, Any]]


def run(works: Sequence[Work], ledger: Ledger, batch_size: int, countdown: Countdown) -> list[dict[str, Any]]:
    """Do all work that is not in the ledger; returns one record per cell: settings, metrics, rows."""
    records = []
    for work in works:
        condition = work.condition
        countdown.label = f"{work.task}, {condition.name}"
        who = identity(condition.engine)
        settings = {"task": work.task, "way": condition.way, "model": who, **work.settings}
        if not who["batch_invariant"]:
            settings["batch_size"] = batch_size
        key = settings_key(settings)
        rows = ledger.run(key, work.examples, work.answer, batch_size, countdown.tick)
        records.append(
            {
                "task": work.task,
                "condition": condition.name,
                "key": key,
                "settings": settings,
                "examples": len(rows),
                "metrics": work.summarise(rows),
                "rows": rows,
            }
        )
    return records


def generation_work(task: Task, condition: Condition, examples: Sequence[Example]) -> Work:
    """A task answered in text."""
    params = condition.params(task.settings)
    settings = {
        "set": task.set_name,
        "rule": task.rule,
        "settings_from": task.source if condition.profile == "task" and condition.way == "diffusion" else condition.profile,
        "length": "the reference's" if task.length else "the window's rest (256), or max_new_tokens where given",
        "sampling": condition.recorded(params),
    }

    def summarise(rows: list[Row]) -> dict[str, Any]:
        return task_metrics(task, rows if task.runs_code else _scored_again(task, examples, rows))

    return Work(task.name, condition, examples, settings, lambda batch: answer_task(condition, task, batch), summarise)


def likelihood_work(task: Task, condition: Condition, examples: Sequence[Example], copies: int) -> Work:
    """A task scored by the log-likelihood of its options; ConfigError where the family has no such estimate."""
    engine = condition.engine
    is_exact = condition.way == "exact likelihood"
    if not is_exact and engine.family not in BOUNDED:
        raise ConfigError(
            f"likelihood: the checkpoint decodes as {engine.family}, expected one of {', '.join(BOUNDED)}. Give --scoring generation."
        )
    settings = {"set": task.set_name, "rule": "the option of the highest log-likelihood"}
    if not is_exact:
        settings["copies"] = copies

    def answer(batch: Sequence[Example]) -> list[Row]:
        return [_option_likelihoods(task, condition, example, copies) for example in batch]

    return Work(task.name, condition, examples, settings, answer, likelihood_metrics)


def task_metrics(task: Task, rows: list[Row]) -> dict[str, Any]:
    """Return the task's own metrics and what the decodes took."""
    out = {
        name: intervals.share([bool(row[name]) for row in rows]) if kind == "share" else intervals.mean([row[name] for row in rows])
        for name, kind in task.metrics.items()
    }
    return {**out, **cost_metrics(rows)}


def _scored_again(task: Task, examples: Sequence[Example], rows: list[Row]) -> list[Row]:
    """Score kept answers by the rules as they are now: a decode is slow and its text does not change, a rule of reading may."""
    return [{**row, **task.scored(example, row["text"])} for example, row in zip(examples, rows, strict=True)]


def cost_metrics(rows: list[Row]) -> dict[str, Any]:
    """Return forward evaluations, answer tokens per evaluation, and the step after which nothing changed."""
    return {
        "nfe": intervals.mean([row["nfe"] for row in rows]),
        "tpf": intervals.ratio([row["tokens"] for row in rows], [row["nfe"] for row in rows]),
        "settled_at": intervals.mean([row["settled_at"] for row in rows]),
    }


def likelihood_metrics(rows: list[Row]) -> dict[str, Any]:
    """Return accuracy by the sum and by the sum per character; with one option, how likely and how often the best it is."""
    if all(len(row["options"]) == 1 for row in rows):
        return {
            "accuracy": intervals.share([row["is_best"][0] for row in rows]),
            "target_perplexity": intervals.ratio([-row["options"][0] for row in rows], [row["tokens"][0] for row in rows], True),
        }
    return {
        "accuracy": intervals.share([_best(row["options"]) == row["label"] for row in rows]),
        "accuracy_per_character": intervals.share(
            [_best([total / size for total, size in zip(row["options"], row["characters"], strict=True)]) == row["label"] for row in rows]
        ),
    }


def _best(values: Sequence[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)


def _option_likelihoods(task: Task, condition: Condition, example: Example, copies: int) -> Row:
    engine = condition.engine
    prompt, texts = task.options(example)
    front = prompt_ids(prompt, engine.codec, engine.adapter_facts or prompt_defaults(engine.facts, engine.codec))
    answers = [engine.codec.encode_continuation(text) for text in texts]
    # A question beyond the window is read by its end, one for all options, as lm-eval does.
    room = engine.facts.max_positions - max(map(len, answers)) - 1
    cut = max(len(front) - room, 0)
    front = front[cut:]
    if condition.way == "exact likelihood":
        if all(len(ids) == 1 for ids in answers):
            found = exact_single_tokens(engine, front, [ids[0] for ids in answers])
        else:
            found = [exact(engine, front, ids) for ids in answers]
    else:
        found = [masked(engine, front, ids, copies, f"{example.id}/{index}") for index, ids in enumerate(answers)]
    return {
        "options": [total for total, _ in found],
        "is_best": [is_best for _, is_best in found],
        "tokens": [len(ids) for ids in answers],
        "characters": [max(len(text), 1) for text in texts],
        "label": example.label,
        "tokens_cut": cut,
    }
