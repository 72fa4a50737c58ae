"""Where each set lives on the Hugging Face hub, and how its rows become ours (id, prompt, choices and label, or answers)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]


@dataclass(frozen=True)
class HubSet:
    """A dataset of the hub: repository, configuration, split, revision (None: main), and the reading of one row."""

    repository: str
    configuration: str | None
    split: str
    read: Callable[[Row], dict[str, Any]]
    revision: str | None = None


def fetch(name: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a set in our form.

    Raises:
        ImportError: the package `datasets` is not installed. OSError, ValueError, RuntimeError: the hub cannot be reached.
    """
    from datasets import load_dataset

    place = HUB_SETS[name]
    rows = load_dataset(place.repository, place.configuration, split=place.split, revision=place.revision)
    for number, row in enumerate(rows):
        read = place.read(row)
        yield {"id": f"{name}/{read.pop('key', number)}", **read}


def _arc(row: Row) -> dict[str, Any]:
    return {
        "key": row["id"],
        "prompt": row["question"],
        "choices": list(row["choices"]["text"]),
        "label": list(row["choices"]["label"]).index(row["answerKey"]),
    }


def _mmlu(row: Row) -> dict[str, Any]:
    return {"prompt": row["question"], "choices": list(row["choices"]), "label": int(row["answer"]), "subject": row["subject"]}


def _hellaswag(row: Row) -> dict[str, Any]:
    # The second half of the context begins a sentence, and is written small.
    text = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
    return {"prompt": _without_marks(text), "choices": [_without_marks(ending) for ending in row["endings"]], "label": int(row["label"])}


def _without_marks(text: str) -> str:
    """Return a text of WikiHow without its `[header]`, `[title]` and `[step]`, as lm-eval reads it: a title ends the sentence before it."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ").strip()


def _piqa(row: Row) -> dict[str, Any]:
    return {"prompt": row["goal"], "choices": [row["sol1"], row["sol2"]], "label": int(row["label"])}


def _gsm8k(row: Row) -> dict[str, Any]:
    return {"prompt": row["question"], "answers": [row["answer"].rsplit("####", 1)[1].strip()]}


def _lambada(row: Row) -> dict[str, Any]:
    context, word = row["text"].rsplit(" ", 1)
    return {"prompt": context, "answers": [word]}


def _humaneval(row: Row) -> dict[str, Any]:
    return {
        "key": row["task_id"],
        "prompt": row["prompt"],
        "answers": [row["canonical_solution"]],
        "test": row["test"],
        "entry_point": row["entry_point"],
    }


HUB_SETS = {
    "arc_easy_test": HubSet("allenai/ai2_arc", "ARC-Easy", "test", _arc),
    "arc_challenge_test": HubSet("allenai/ai2_arc", "ARC-Challenge", "test", _arc),
    "mmlu_test": HubSet("cais/mmlu", "all", "test", _mmlu),
    "hellaswag_validation": HubSet("Rowan/hellaswag", None, "validation", _hellaswag),
    # The repository itself is a script, which newer versions of datasets do not run; this is the hub's own conversion.
    "piqa_validation": HubSet("ybisk/piqa", None, "validation", _piqa, "refs/convert/parquet"),
    "gsm8k_test": HubSet("openai/gsm8k", "main", "test", _gsm8k),
    "lambada_test": HubSet("EleutherAI/lambada_openai", "default", "test", _lambada),
    "humaneval": HubSet("openai/openai_humaneval", None, "test", _humaneval),
}
