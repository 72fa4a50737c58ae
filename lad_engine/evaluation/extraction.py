"""How an answer is read out of a text; every rule is here, in the order in which it is tried."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation

LETTERS = "ABCDEFGHIJ"
# A dash behind a word or a number joins or subtracts, and one before a space marks a line: neither is a sign.
_NUMBER = re.compile(r"(?:(?<![\w)])-\$?|\$-?)?(?:\d[\d,]*(?:\.\d+)?|(?<![\w.])\.\d+)")
_ARTICLE = r"A\s+(?!(?:because|since|as|for|and|which|is)\b)[a-z]"
_ASKED = r"(?:\s+to\s+(?:this|the)(?:\s+\w+)?\s+question)?"
_FENCE = re.compile(r"```[\w+.-]*[ \t\r]*\n(.*?)(?:```|\Z)", re.DOTALL)
_QUOTE = "*\"'“”‘’"


def chosen_option(text: str, choices: Sequence[str]) -> int | None:
    """Return which option a text chooses, None where it chooses none.

    1. A letter behind "answer is" ("The answer is (B)", "The answer to this question is B"), "option is", "choice is" or "answer:", but not
       the article ("The answer is A magnet"); else behind "option" or "choice".
    2. A letter that is the whole text or its first line, or begins it and is followed by `.`, `)`, `:`, `,` or "is the correct"; or one in
       brackets anywhere, "(B)". Quotation marks and stars around a letter do not count.
    3. The one option whose words occur in the text; where an option contains another one, the longer counts. Several: none.
    """
    letters = LETTERS[: len(choices)]
    patterns = (
        rf"(?i:\b(?:(?:answer|option|choice){_ASKED}\s+is|answer\s*:))[\s:({_QUOTE}]*(?!{_ARTICLE})([{letters}])\b",
        rf"(?i:\b(?:option|choice))[\s:({_QUOTE}]*([{letters}])\b",
        rf"^\W*([{letters}])(?:\W*$|[{_QUOTE}]*(?:[.):,]|[ \t]*\n|\s+is\s+(?:the\s+)?(?:correct|right|best)\b))",
        rf"\(([{letters}])\)",
    )
    for pattern in patterns:
        found = re.search(pattern, text)
        if found:
            return letters.index(found[1])
    heard = f" {_words(text)} "
    named = [index for index, choice in enumerate(choices) if _words(choice) and f" {_words(choice)} " in heard]
    longest = [
        one for one in named if not any(one != other and f" {_words(choices[one])} " in f" {_words(choices[other])} " for other in named)
    ]
    return longest[0] if len(longest) == 1 else None


def last_number(text: str) -> Decimal | None:
    """Return the number a solution ends with: the first one behind the last `####`, else behind the last "answer is", else the last one."""
    for marker in ("####", "answer is"):
        _, found, tail = text.rpartition(marker)
        numbers = _NUMBER.findall(tail) if found else []
        if numbers:
            return _value(numbers[0])
    numbers = _NUMBER.findall(text)
    return _value(numbers[-1]) if numbers else None


def first_words(text: str, count: int | None = None) -> list[str]:
    """Return the first words of a continuation (None: all), in lower case and without punctuation around them."""
    words = (word.strip("'’-") for word in _words(text).split())
    return list(filter(None, words))[:count]


def program(text: str, prompt: str, entry_point: str) -> str:
    """Return the program an answer makes of a function's head and docstring.

    The first fenced block, else the whole text. Where it defines the function, what the prompt has in front of that function (imports,
    helpers that the tests call) is put before it; otherwise it is taken as the function's body, indented where it is not. Answers are
    stripped on the left, so of a body the first line alone may have lost its indent.
    """
    found = _FENCE.search(text)
    code = found[1] if found else text
    head = rf"^\s*def\s+{re.escape(entry_point)}\b"
    if re.search(head, code, re.MULTILINE):
        return re.split(head, prompt, maxsplit=1, flags=re.MULTILINE)[0] + "\n" + code
    lines = code.strip("\n").splitlines()
    if lines and not lines[0].startswith((" ", "\t")):
        indents = [len(line) - len(line.lstrip()) for line in lines[1:] if line.strip()]
        is_stripped = bool(indents) and min(indents) >= 4 and (indents[0] > 4 or not lines[0].rstrip().endswith(":"))
        lines = [f"    {lines[0]}", *(lines[1:] if is_stripped else [f"    {line}" for line in lines[1:]])]
    return prompt + "\n".join(lines) + "\n"


def _words(text: str) -> str:
    return " ".join(re.findall(r"[\w'’-]+", text.lower()))


def _value(number: str) -> Decimal | None:
    try:
        return Decimal(re.sub(r"[$,\s]", "", number)).normalize()
    except InvalidOperation:
        return None
