"""The tasks as a table: which set, what is asked, with which settings, and what counts as right.

Settings of ARC, MMLU, HellaSwag and GSM8K are the LAD paper's (appendix C); the others are ours where the paper has none, and say so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..text.prompts import Prompt
from . import sandbox
from .extraction import LETTERS, chosen_option, first_words, last_number, program
from .sets import Example
from .text_metrics import rouge_l, rouge_n

WINDOW = 256
PAPER = "LAD paper, appendix C"
OURS = "ours: the paper has no settings for this task"
PAPER_CHOICE = {"steps": 16, "noise_start": 1.0, "top_k": 1, "top_p": 0.1, "noise_sharpness": 1.0}
PAPER_GSM8K = {"steps": 256, "noise_start": 0.0, "top_k": 1, "top_p": 1.0, "tokens_per_step": 4, "remasking": "none"}


@dataclass(frozen=True)
class Task:
    """One task.

    prompt: what a denoiser is asked; prompt_causal: what the baseline is asked where that differs (it sees no right context).
    settings: over the profile "paper". length: the reference whose number of tokens the answer gets; None: the window's rest.
    scored: what an answer's text is worth, by metric. options: (question, answers) for the likelihood, None where there is none.
    rule: how the answer is read, in one sentence.
    """

    name: str
    set_name: str
    prompt: Callable[[Example], Prompt]
    scored: Callable[[Example, str], dict[str, Any]]
    rule: str
    settings: Mapping[str, Any]
    source: str = OURS
    prompt_causal: Callable[[Example], Prompt] | None = None
    length: Callable[[Example], str] | None = None
    options: Callable[[Example], tuple[Prompt, tuple[str, ...]]] | None = None
    metrics: Mapping[str, str] = field(default_factory=lambda: {"accuracy": "share", "answered": "share"})
    runs_code: bool = False


def _choice_prompt(example: Example) -> Prompt:
    options = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, example.choices, strict=False))
    return Prompt(f"{example.prompt}\n\n{options}\n\nAnswer with the letter of the correct option.")


def _ending_prompt(example: Example) -> Prompt:
    options = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, example.choices, strict=False))
    return Prompt(f"Which ending fits the text?\n\n{example.prompt}\n\n{options}\n\nAnswer with the letter of the correct option.")


def _choice_score(example: Example, text: str) -> dict[str, Any]:
    chosen = chosen_option(text, example.choices)
    return {"accuracy": chosen == example.label, "answered": chosen is not None}


def _choice_texts(example: Example) -> tuple[Prompt, tuple[str, ...]]:
    return Prompt(example.prompt), example.choices


def _choice_letters(example: Example) -> tuple[Prompt, tuple[str, ...]]:
    return _choice_prompt(example), tuple(LETTERS[: len(example.choices)])


def _number_score(example: Example, text: str) -> dict[str, Any]:
    number = last_number(text)
    return {"accuracy": number is not None and number == last_number(example.answers[0]), "answered": number is not None}


def _word_score(example: Example, text: str) -> dict[str, Any]:
    # Split at spaces alone, a few references of the set hold the end of a line before: then all of their words count.
    wanted = first_words(example.answers[0])
    found = first_words(text, len(wanted))
    return {"accuracy": found == wanted, "answered": bool(found)}


def _story(example: Example) -> list[str]:
    return [*example.more["sentences"], example.choices[example.label or 0]]


def _story_prompt(example: Example) -> Prompt:
    sentences = _story(example)
    # The gap gets its number of positions from the reference: see `conditions`.
    before, after = (" ".join(part).replace("[[", "[ [") for part in (sentences[:2], sentences[3:]))
    return Prompt(infill=f"{before}[[GAP]] {after}", format="raw")


def _story_score(example: Example, text: str) -> dict[str, Any]:
    reference = _story(example)[2]
    return {
        "rouge_1": rouge_n(text, reference, 1),
        "rouge_2": rouge_n(text, reference, 2),
        "rouge_l": rouge_l(text, reference),
    }


def _code_prompt(example: Example) -> Prompt:
    return Prompt(f"Complete this Python function. Answer with the whole function.\n\n```python\n{example.prompt}```")


def _code_score(example: Example, text: str) -> dict[str, Any]:
    entry = example.more["entry_point"]
    code = program(text, example.prompt, entry)
    return {"pass_at_1": sandbox.passes(f"{code}\n{example.more['test']}\ncheck({entry})\n"), "answered": bool(text.strip())}


CHOICE_RULE = "a letter after 'answer is', alone or in front, or in brackets; else the one option whose words occur in the text; else wrong"


def _choice(name: str, set_name: str, source: str = PAPER, **changes: Any) -> Task:
    fields = {"prompt": _choice_prompt, "options": _choice_texts, **changes}
    return Task(name, set_name, scored=_choice_score, rule=CHOICE_RULE, settings=PAPER_CHOICE, source=source, **fields)


TASKS = {
    task.name: task
    for task in (
        _choice("arc_easy", "arc_easy_test"),
        _choice("arc_challenge", "arc_challenge_test"),
        _choice("mmlu", "mmlu_test", options=_choice_letters),
        _choice("hellaswag", "hellaswag_validation", prompt=_ending_prompt),
        _choice("piqa", "piqa_validation", OURS),
        Task(
            "gsm8k",
            "gsm8k_test",
            lambda example: Prompt(example.prompt),
            _number_score,
            "the number behind the last ####, else behind 'answer is', else the last number; equal as a decimal",
            PAPER_GSM8K,
            PAPER,
        ),
        Task(
            "lambada",
            "lambada_test",
            lambda example: Prompt(example.prompt, format="raw"),
            _word_score,
            "the first word, without case and punctuation; as many open positions as the word has tokens",
            {**PAPER_CHOICE, "top_p": 1.0},
            length=lambda example: f" {example.answers[0]}",
            options=lambda example: (Prompt(example.prompt, format="raw"), (f" {example.answers[0]}",)),
        ),
        Task(
            "rocstories",
            "rocstories_cloze_val2016",
            _story_prompt,
            _story_score,
            "the third of five sentences from the other four, ROUGE F1; as many open positions as it has tokens; "
            "the baseline continues the first two sentences",
            {**PAPER_CHOICE, "steps": 32, "top_p": 1.0},
            prompt_causal=lambda example: Prompt(" ".join(_story(example)[:2]), format="raw"),
            length=lambda example: f" {_story(example)[2]}",
            metrics={"rouge_1": "mean", "rouge_2": "mean", "rouge_l": "mean"},
        ),
        Task(
            "humaneval",
            "humaneval",
            _code_prompt,
            _code_score,
            "the first fenced block, else the text; where it does not define the function, its body, indented where it is not; "
            "all tests pass within 10 s",
            {**PAPER_CHOICE, "steps": 64, "top_p": 1.0},
            metrics={"pass_at_1": "share", "answered": "share"},
            runs_code=True,
        ),
    )
}
