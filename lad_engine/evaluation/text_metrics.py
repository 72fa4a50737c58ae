"""Numbers read off a text alone: ROUGE against a reference, distinct n-grams, repetition."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence


def words(text: str) -> list[str]:
    """Return the words of a text in lower case: runs of letters, digits and apostrophes."""
    return re.findall(r"[a-z0-9']+", text.lower())


def rouge_n(text: str, reference: str, n: int) -> float:
    """Return the F1 of the n-grams two texts share, each counted as often as both have it."""
    mine, theirs = Counter(_grams(words(text), n)), Counter(_grams(words(reference), n))
    return _f1((mine & theirs).total(), mine.total(), theirs.total())


def rouge_l(text: str, reference: str) -> float:
    """Return the F1 of the longest common subsequence of words."""
    mine, theirs = words(text), words(reference)
    row = [0] * (len(theirs) + 1)
    for word in mine:
        above = row
        row = [0]
        for index, other in enumerate(theirs):
            row.append(above[index] + 1 if word == other else max(above[index + 1], row[-1]))
    return _f1(row[-1], len(mine), len(theirs))


def distinct(texts: Sequence[str], n: int) -> float:
    """Return the share of different n-grams among all n-grams of all texts, 0 where there are none."""
    grams = [gram for text in texts for gram in _grams(words(text), n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def repetition(text: str) -> float:
    """Return the share of words that equal the one before or end a run of three words that the text already had."""
    run = words(text)
    seen: set[tuple[str, ...]] = set()
    repeated = 0
    for index, word in enumerate(run):
        three = tuple(run[max(0, index - 2) : index + 1])
        repeated += (index > 0 and run[index - 1] == word) or (len(three) == 3 and three in seen)
        seen.add(three)
    return repeated / len(run) if run else 0.0


def _grams(run: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(run[index : index + n]) for index in range(len(run) - n + 1)]


def _f1(common: int, mine: int, theirs: int) -> float:
    return 2 * common / (mine + theirs) if common else 0.0
