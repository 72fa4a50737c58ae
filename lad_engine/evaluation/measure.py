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

# Which way of the base alone each way of the adapter is compared with.
BASELINE_OF = {"diffusion": "autoregressive", "masked likelihood": "exact likelihood"}
# Families whose training loss bounds the likelihood of an answer.
BOUNDED = ("lad", "masked")


@dataclass(frozen=True)
class Work:
    """One cell of the table: examples of a task (or of the prompts) under one condition.

    settings: what the numbers depend on, recorded beside them; answer: makes rows of a batch; summarise: metrics of all rows; figures: the
    metrics that are compared with the baseline example by example, each with one value per row.
    """

    task: str
    condition: Condition
    examples: Sequence[Example]
    settings: Mapping[str, Any]
    answer: Callable[[Sequence[Example]], list[Row]]
    summarise: Callable[[list[Row]], dict[str, Any]]
    figures: Callable[[list[Row]], dict[str, list[float]]] = lambda rows: {}


def run(works: Sequence[Work], ledger: Ledger, batch_size: int, countdown: Countdown) -> list[dict[str, Any]]:
    """Do all work that is not in the ledger; returns one record per cell: settings, metrics, rows, and how it differs from its baseline.

    The baseline of a cell is the first one of its task that the base alone answered, by text or by likelihood as the cell was.
    """
    records, figures = [], []
    for work in works:
        condition = work.condition
        countdown.label = f"{work.task}, {condition.name}"
        who = identity(condition.engine)
        asked = {} if condition.system is None else {"system_prompt": condition.system}
        settings = {"task": work.task, "way": condition.way, "model": who, **asked, **work.settings}
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
        figures.append(work.figures(rows))
    places = range(len(records))
    for record, ours in zip(records, figures, strict=True):
        wanted = (record["task"], BASELINE_OF.get(record["settings"]["way"]))
        place = next((one for one in places if (records[one]["task"], records[one]["settings"]["way"]) == wanted), None)
        if place is not None and ours:
            differences = {name: intervals.difference(values, figures[place][name]) for name, values in ours.items()}
            record["difference"] = {"from": records[place]["condition"], "metrics": differences}
    return records


def generation_work(task: Task, condition: Condition, examples: Sequence[Example]) -> Work:
    """A task answered in text."""
    sampling = condition.recorded(condition.params(task.settings))
    if condition.fills_window(task):
        # The default is not what is read then, and one who asks for as much has another key.
        sampling["max_new_tokens"] = None
    settings = {
        "set": task.set_name,
        "rule": task.rule,
        "settings_from": task.source if condition.profile == "task" and condition.way == "diffusion" else condition.profile,
        "length": "the reference's" if task.length else "the window's rest (256), or max_new_tokens where given",
        "sampling": sampling,
    }

    def scored(rows: list[Row]) -> list[Row]:
        return rows if task.runs_code else _scored_again(task, examples, rows)

    def figures(rows: list[Row]) -> dict[str, list[float]]:
        rows = scored(rows)
        return {name: [float(row[name]) for row in rows] for name in task.metrics}

    return Work(
        task.name,
        condition,
        examples,
        settings,
        lambda batch: answer_task(condition, task, batch),
        lambda rows: task_metrics(task, scored(rows)),
        figures,
    )


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

    return Work(task.name, condition, examples, settings, answer, likelihood_metrics, likelihood_figures)


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
    out = {name: intervals.share([bool(value) for value in values]) for name, values in likelihood_figures(rows).items()}
    if _has_one_option(rows):
        losses, tokens = [-row["options"][0] for row in rows], [row["tokens"][0] for row in rows]
        out["target_perplexity"] = intervals.ratio(losses, tokens, True)
    return out


def likelihood_figures(rows: list[Row]) -> dict[str, list[float]]:
    """Return which examples were right, by each way of counting."""
    if _has_one_option(rows):
        return {"accuracy": [float(row["is_best"][0]) for row in rows]}
    sums = [row["options"] for row in rows]
    means = [[total / size for total, size in zip(row["options"], row["characters"], strict=True)] for row in rows]
    ways = {"accuracy": sums, "accuracy_per_character": means}
    return {name: [float(_best(one) == row["label"]) for one, row in zip(values, rows, strict=True)] for name, values in ways.items()}


def _has_one_option(rows: list[Row]) -> bool:
    return all(len(row["options"]) == 1 for row in rows)


def _best(values: Sequence[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)


def _option_likelihoods(task: Task, condition: Condition, example: Example, copies: int) -> Row:
    engine = condition.engine
    prompt, texts = task.options(example)
    prompt = condition.asked(prompt)
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
