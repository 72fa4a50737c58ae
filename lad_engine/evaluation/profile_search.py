"""The search for a decode profile: the fewest forward passes whose answers are within a floor of the best found."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import SamplingParams
from ..errors import ConfigError
from ..profiles import TUNED, beside_adapter, load_profile
from . import intervals
from .conditions import Condition, identity
from .judge import Judge
from .ledger import Ledger
from .measure import run
from .open_answers import open_work, quality
from .progress import Countdown
from .sets import Example

if TYPE_CHECKING:
    from ..engine import Engine

# Where a decode starts from: re-noising policy and schedule; all greedy, so that a tuned profile gives the same answer each time.
POLICIES: dict[str, dict[str, Any]] = {
    "no re-noising": {"remasking": "none"},
    "random, exponential": {"remasking": "random"},
    "random, linear": {"remasking": "random", "noise_schedule": "linear"},
    "random, half the noise": {"remasking": "random", "noise_start": 0.5},
    "least confident, linear": {"remasking": "confidence", "noise_schedule": "linear"},
    "weighted, exponential": {"remasking": "weighted"},
    "retain, locked": {"remasking": "confidence", "noise_schedule": "linear", "retention": "locked"},
    "retain, editable": {"remasking": "confidence", "noise_schedule": "linear", "retention": "editable"},
    "transfer": {"remasking": "transfer"},
    "transfer, blocks of 8": {"remasking": "transfer", "block_length": 8},
    "transfer, blocks of 8, all of 0.9": {"remasking": "transfer", "block_length": 8, "threshold": 0.9},
}
# Tried on the policies that lead, one change at a time.
CHANGES: dict[str, dict[str, Any]] = {
    "top-k 3": {"temperature": 1.0, "top_k": 3},
    "no early stop": {"early_stop": False},
}
LEADERS = 2
START = {"temperature": 0.0, "top_k": 1, "noise_start": 1.0}


def search(
    engine: Engine, judge: Judge, examples: Sequence[Example], steps: Sequence[int], length: int, ledger: Ledger, batch_size: int, out: Any
) -> list[dict[str, Any]]:
    """Measure every policy and the present profile at every step count, then the changes on the leaders; returns one trial per candidate.

    A trial: name, settings, quality (with its interval), nfe, tpf.
    Raises:
        ConfigError: the checkpoint's family does not decode by re-noising.
    """
    if engine.family != "lad":
        raise ConfigError(f"tune-profile: the checkpoint decodes as {engine.family}, expected lad: the others have no such policies.")
    first = [
        (f"{name}, {count} steps", {**START, **policy, "steps": count, "max_new_tokens": length})
        for name, policy in POLICIES.items()
        for count in steps
        # Blocks share the steps evenly.
        if "block_length" not in policy or (length % policy["block_length"] == 0 and count % (length // policy["block_length"]) == 0)
    ]
    own = engine.sampling()
    if own.profile != "paper":
        # What is found goes before what the engine decodes with now, so that is to be beaten; at its own number of steps too.
        counts = dict.fromkeys((*steps, own.steps))
        first += [
            (f"profile {own.profile}, {count} steps", {**_laid_over_paper(own), "steps": count, "max_new_tokens": length})
            for count in counts
        ]
    # The second stage is counted too, so that the time left holds for the whole search.
    countdown = Countdown(out, len(examples) * (len(first) + LEADERS * len(CHANGES)))
    trials = _measured(engine, judge, examples, first, ledger, batch_size, countdown)
    leaders = sorted(trials, key=lambda trial: (-trial["quality"]["value"], trial["nfe"]["value"]))[:LEADERS]
    second = [(f"{lead['name']}, {name}", {**lead["settings"], **change}) for lead in leaders for name, change in CHANGES.items()]
    trials += _measured(engine, judge, examples, second, ledger, batch_size, countdown)
    countdown.close()
    return trials


def choose(trials: Sequence[dict[str, Any]], floor: float) -> dict[str, Any]:
    """Return the trial of the fewest evaluations among those whose quality is at least (1 - floor) of the best; then the better one.

    Raises:
        ConfigError: none has any quality, so that each would do.
    """
    best = max(trial["quality"]["value"] for trial in trials)
    if best <= 0.0:
        raise ConfigError(
            f"tune-profile: none of {len(trials)} candidates wrote words, expected some. Nothing is saved; check the adapter."
        )
    good = [trial for trial in trials if trial["quality"]["value"] >= (1.0 - floor) * best]
    return min(good, key=lambda trial: (trial["nfe"]["value"], -trial["quality"]["value"]))


def place_of_profile(engine: Engine) -> Path:
    """Return where `save` will write, before a search that takes hours.

    Raises:
        ConfigError: the engine has no adapter, or nothing can be written beside it.
    """
    if engine.adapter_path is None:
        raise ConfigError("tune-profile: there is no adapter, expected one to keep the profile beside. Give --adapter.")
    place = beside_adapter(engine.adapter_path)
    if not os.access(place.parent, os.W_OK):
        raise ConfigError(f"{place}: cannot be written, expected a folder that can be. Copy the adapter to a folder of your own.")
    return place


def save(trial: dict[str, Any], trials: Sequence[dict[str, Any]], floor: float, engine: Engine, judge: Judge, prompts: str) -> Path:
    """Write the profile beside the adapter, with what it was chosen by; returns where.

    Raises:
        ConfigError: the engine has no adapter, or the place cannot be written.
    """
    place = place_of_profile(engine)
    best = max(trials, key=lambda one: one["quality"]["value"])
    record = {
        "name": TUNED,
        "settings": trial["settings"],
        "chosen_by": {
            "floor": floor,
            "prompts": prompts,
            "quality_of": "judge's geometric mean probability per token x (1 - share of repeated words), mean over the prompts",
            "quality": trial["quality"],
            "nfe": trial["nfe"],
            "best_quality": best["quality"]["value"],
            "best_name": best["name"],
            "candidates": len(trials),
            "engine": identity(engine),
            "judge": identity(judge.engine),
        },
    }
    temporary = place.with_name(f"{place.name}.part")
    try:
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        temporary.replace(place)
    except OSError as error:
        raise ConfigError(f"{place}: cannot be written ({error.strerror}). Copy the adapter to a folder of your own.") from error
    return place


def _laid_over_paper(own: SamplingParams) -> dict[str, Any]:
    """Return the fields that make `own` of the profile "paper", and of no profile."""
    paper, plain = load_profile("paper"), SamplingParams()
    names = [field.name for field in dataclasses.fields(own) if field.name not in ("profile", "seed")]
    return {name: getattr(own, name) for name in names if name in paper or getattr(own, name) != getattr(plain, name)}


def _measured(
    engine: Engine,
    judge: Judge,
    examples: Sequence[Example],
    candidates: Sequence[tuple[str, dict[str, Any]]],
    ledger: Ledger,
    batch_size: int,
    countdown: Countdown,
) -> list[dict[str, Any]]:
    works = [open_work(Condition(name, "diffusion", engine, "paper", settings), examples, judge) for name, settings in candidates]
    records = run(works, ledger, batch_size, countdown)
    return [
        {
            "name": name,
            "settings": settings,
            "key": record["key"],
            "quality": intervals.mean([quality(row) for row in record["rows"]]),
            **{metric: record["metrics"][metric] for metric in ("perplexity", "repetition", "nfe", "tpf")},
        }
        for (name, settings), record in zip(candidates, records, strict=True)
    ]
