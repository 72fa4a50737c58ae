"""Open prompts at several step counts: how a judge finds the answers, how varied they are, and when they settle."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ..config import RENOISING
from ..text.prompts import Prompt
from . import intervals
from .conditions import TASK_SETTINGS, Condition, decode, facts_of, identity
from .judge import Judge
from .ledger import Row
from .measure import Work, cost_metrics
from .sets import Example
from .text_metrics import distinct, repetition

if TYPE_CHECKING:
    from ..engine import Engine

TASK = "open"
RENOISED, KEPT = "re-noising", "no re-noising"


def open_conditions(engine: Engine, profile: str, steps: Sequence[int], settings: Mapping[str, Any]) -> list[Condition]:
    """Return the adapter's conditions: at each step count with the paper's re-noising, without any, and as `profile` decodes.

    Only LAD's loop puts noise back; of another family there is the profile alone. Where the profile is one of the two it is not repeated.
    With re-noising every step is made: while nearly all is hidden, greedy predictions are equal, and the paper's early stop takes the first
    of many steps for convergence. When answers settle is measured either way.
    """
    own = engine.sampling(None if profile in (TASK_SETTINGS, "adapter") else profile)
    length = {"max_new_tokens": own.max_new_tokens, **settings}
    conditions = []
    for count in steps:
        if engine.family == "lad":
            renoised = {"early_stop": False, **length, "steps": count}
            conditions.append(Condition(f"{RENOISED}, {count} steps", "diffusion", engine, "paper", renoised))
            kept = {**length, "steps": count, "remasking": "none"}
            conditions.append(Condition(f"{KEPT}, {count} steps", "diffusion", engine, "paper", kept))
        named = "adapter" if profile == TASK_SETTINGS else profile
        asked = Condition(f"profile {own.profile}, {count} steps", "diffusion", engine, named, {**length, "steps": count})
        if own.profile != "paper":
            conditions.append(asked)
    return conditions


def open_work(condition: Condition, examples: Sequence[Example], judge: Judge) -> Work:
    """Open prompts under one condition."""
    params = condition.params({})
    settings = {"judge": identity(judge.engine), "sampling": condition.recorded(params), "steps": params.steps}
    settings["renoising"] = condition.way == "diffusion" and params.remasking in RENOISING and params.noise_start > 0

    def answer(batch: Sequence[Example]) -> list[Row]:
        rows = []
        own = [condition.seeded(params, one) for one in batch]
        for example, result in zip(batch, decode(condition, [condition.asked(Prompt(one.prompt)) for one in batch], own), strict=True):
            loss, tokens = judge.score(example.prompt, result.text)
            scores = {"judge_loss": loss, "judge_tokens": tokens, "repetition": repetition(result.text)}
            rows.append({**facts_of(result), "text": result.text, **scores})
        return rows

    return Work(TASK, condition, examples, settings, answer, open_metrics)


def open_metrics(rows: list[Row]) -> dict[str, Any]:
    """Return perplexity under the judge, distinct-1/2/3 over all answers, repetition, share of answers with words, and the cost."""
    texts = [row["text"] for row in rows]
    varied = {f"distinct_{n}": intervals.of_list(texts, partial(distinct, n=n)) for n in (1, 2, 3)}
    return {
        "perplexity": intervals.ratio([row["judge_loss"] for row in rows], [row["judge_tokens"] for row in rows], True),
        **varied,
        "repetition": intervals.mean([row["repetition"] for row in rows]),
        "answered": intervals.share([row["judge_tokens"] > 0 for row in rows]),
        **cost_metrics(rows),
    }


def quality(row: Row) -> float:
    """Return how good one answer is, from 0 to 1: the judge's geometric mean probability per token, less the share of repeated words."""
    if not row["judge_tokens"]:
        return 0.0
    return math.exp(-row["judge_loss"] / row["judge_tokens"]) * (1.0 - row["repetition"])
