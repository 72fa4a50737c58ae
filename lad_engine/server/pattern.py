"""Answers that match a regular expression: its literal runs are fixed, what lies between them are gaps.

The pattern is read by Python's own parser and means what `re.fullmatch` makes of it; matching is ours (`regular`), because
what a client sends must not be able to make it backtrack.
"""

from __future__ import annotations

import re
import re._constants as sre  # type: ignore[import-not-found]
import re._parser as sre_parser  # type: ignore[import-not-found]
import warnings
from collections.abc import Iterator
from typing import Any

from ..text.codec import TextCodec
from .failures import Failure
from .regular import Choice, Letter, Matcher, Node, Repeat, Sequence, count_letters, texts_of, width_of
from .skeleton import MOST_POSITIONS, Gap, Skeleton, choice_positions, refused

# Letters that a pattern may stand for at most, endless repeats counted once: the states of its automaton.
MOST_LETTERS = 512
# Groups, repeats and alternatives within each other.
MOST_LEVELS = 24
# Positions of a gap that is one word or number of any length.
WORD_POSITIONS = 16
_KIND_OF = {
    sre.CATEGORY_DIGIT: ("digit", False),
    sre.CATEGORY_NOT_DIGIT: ("digit", True),
    sre.CATEGORY_SPACE: ("space", False),
    sre.CATEGORY_NOT_SPACE: ("space", True),
    sre.CATEGORY_WORD: ("word", False),
    sre.CATEGORY_NOT_WORD: ("word", True),
}
_REFUSED = {
    sre.ASSERT: "look-around ((?=...) or (?<=...))",
    sre.ASSERT_NOT: "look-around ((?!...) or (?<!...))",
    sre.FAILURE: "look-around ((?!...) or (?<!...))",
    sre.GROUPREF: "a back-reference",
    sre.GROUPREF_EXISTS: "a conditional group",
    sre.ATOMIC_GROUP: "an atomic group",
    sre.POSSESSIVE_REPEAT: "a possessive repeat",
    sre.AT: "\\b, \\B, or an anchor within the pattern",
}
_WORD_START, _WORD_END = re.compile(r"[^\W_]*"), re.compile(r"\\*[^\W_]*\Z")
_STARTS, _ENDS = (sre.AT_BEGINNING, sre.AT_BEGINNING_STRING), (sre.AT_END, sre.AT_END_STRING)
_ANYTHING_BUT_NEWLINE = Letter(((10, 10),), is_negated=True)


class Blank(Gap):
    """A gap of a pattern: the texts it may hold, one by one where they are few literals, and the automaton of all of them."""

    def __init__(self, place: str, node: Node) -> None:
        super().__init__(place)
        self._width = width_of(node)
        self._choices = texts_of(node)
        self._matcher = Matcher(node)

    def read(self, raw: str) -> str | None:
        """Return the longest text of the gap that `raw` begins with, spaces in front aside; of choices also in other capitals.

        It ends where a word or number of `raw` does: neither is "nothing" a no, nor 2024 a 20.
        """
        bare = raw.lstrip()
        texts = [text[:end] for text in (raw, bare) for end in self._matcher.ends(text) if _is_whole(text, end)]
        for choice in self._choices or ():
            if bare.lower().startswith(choice.lower()) and _is_whole(bare, len(choice)):
                texts.append(choice)
        # The first of the longest: as it is written comes before other capitals.
        return max(texts, key=len, default=None)

    def positions(self, codec: TextCodec) -> tuple[int, int]:
        if self._choices is not None:
            most = choice_positions(codec, self._choices)
            return most, most
        low, high = self._width
        # A token is one letter or more.
        least, bound = max(low, 1), MOST_POSITIONS if self._matcher.takes(" ") else WORD_POSITIONS
        return least, max(least, bound if high is None else min(high, bound))


def _is_whole(text: str, end: int) -> bool:
    return not (text[:end][-1:].isalnum() and text[end : end + 1].isalnum())


def pattern_skeleton(pattern: str) -> Skeleton:
    """Return the skeleton of a pattern's texts; a Failure names what of the pattern is not supported."""
    node = tree_of(pattern)
    letters = count_letters(node)
    if letters > MOST_LETTERS:
        raise _refused(f"the pattern stands for {min(letters, 10**9)} letters or more, expected at most {MOST_LETTERS}")
    parts, number = [], 0
    for part in _whole_words(_grouped(list(_flat(node)))):
        if isinstance(part, list):
            number += 1
            behind = f" (behind {parts[-1][-20:]!r})" if parts else ""
            part = Blank(f"gap {number}{behind}", Sequence(tuple(part)))
        parts.append(part)
    return Skeleton(parts, "pattern")


def tree_of(pattern: str) -> Node:
    """Return the tree of a pattern, anchors at its two ends left out: the whole answer matches anyway."""
    try:
        with warnings.catch_warnings():
            # A set that may one day nest still means what it says.
            warnings.simplefilter("ignore", FutureWarning)
            parsed = sre_parser.parse(pattern)
    except re.error as error:
        raise _refused(f"the pattern cannot be read ({error}), expected one of Python's re") from error
    except (RecursionError, OverflowError) as error:
        raise _refused("the pattern nests too deep or counts too far, expected one of Python's re") from error
    if parsed.state.flags != sre.SRE_FLAG_UNICODE:
        raise _refused("the pattern sets a flag, expected none such as (?i). Write out what it stands for")
    items = list(parsed)
    if items and items[0][0] is sre.AT and items[0][1] in _STARTS:
        del items[0]
    if items and items[-1][0] is sre.AT and items[-1][1] in _ENDS:
        del items[-1]
    return _sequence(items, 0)


def _sequence(items: Any, depth: int) -> Node:
    if depth > MOST_LEVELS:
        raise _refused(f"the pattern nests too deep, expected at most {MOST_LEVELS} levels of groups and repeats")
    return Sequence(tuple(_node(op, value, depth) for op, value in items))


def _node(op: Any, value: Any, depth: int) -> Node:
    if op is sre.LITERAL:
        return Letter(((value, value),))
    if op is sre.NOT_LITERAL:
        return Letter(((value, value),), is_negated=True)
    if op is sre.ANY:
        return _ANYTHING_BUT_NEWLINE
    if op is sre.IN:
        return _letter_of_set(value)
    if op is sre.BRANCH:
        return Choice(tuple(_sequence(items, depth + 1) for items in value[1]))
    if op in (sre.MAX_REPEAT, sre.MIN_REPEAT):
        least, most, items = value
        item = _sequence(items, depth + 1)
        # A repeat of nothing is nothing, however often.
        return Repeat(item, least, None if most is sre.MAXREPEAT else most) if count_letters(item) else Sequence(())
    if op is sre.SUBPATTERN:
        _, added, taken, items = value
        if added or taken:
            raise _refused("the pattern sets a flag within a group, expected none such as (?i:...). Write out what it stands for")
        return _sequence(items, depth + 1)
    raise _refused(f"the pattern holds {_REFUSED.get(op, str(op))}, which is not supported: expected literals, sets, groups, | and repeats")


def _letter_of_set(items: Any) -> Letter:
    ranges, kinds = [], []
    is_negated = items[0][0] is sre.NEGATE
    for op, value in items[int(is_negated) :]:
        if op is sre.CATEGORY:
            kinds.append(_KIND_OF[value])
        else:
            ranges.append((value, value) if op is sre.LITERAL else value)
    return Letter(tuple(ranges), tuple(kinds), is_negated)


def _flat(node: Node) -> Iterator[Node]:
    """Yield a tree's parts in turn; groups that stand for literals and are repeated are written out as often as they must be there."""
    if isinstance(node, Sequence):
        for item in node.items:
            yield from _flat(item)
    elif isinstance(node, Repeat) and _has_literal(node.item):
        for _ in range(node.least):
            yield from _flat(node.item)
        if node.most != node.least:
            yield Repeat(node.item, 0, None if node.most is None else node.most - node.least)
    else:
        yield node


def _has_literal(node: Node) -> bool:
    if isinstance(node, Letter):
        return node.literal is not None
    return any(map(_has_literal, node.items)) if isinstance(node, Sequence) else isinstance(node, Repeat) and _has_literal(node.item)


def _grouped(nodes: list[Node]) -> list[str | list[Node]]:
    """Return runs of literals as texts, and runs of everything else as lists."""
    parts: list[str | list[Node]] = []
    for node in reversed(nodes):
        literal = node.literal if isinstance(node, Letter) else None
        # An infill reads a backslash together with the gap behind it, so it is the gap's.
        is_fixed = literal is not None and not (literal == "\\" and parts and isinstance(parts[-1], list))
        item = literal if is_fixed else [node]
        if parts and type(parts[-1]) is type(item):
            parts[-1] = item + parts[-1]
        else:
            parts.append(item)
    return parts[::-1]


def _whole_words(parts: list[str | list[Node]]) -> list[str | list[Node]]:
    """Move the rest of a word into the gap that chooses its end or beginning: tokens are words, and Python's parser splits those of
    `positive|possible` behind their common letters. Two gaps keep some fixed text between them.
    """
    last = len(parts) - 1
    for index, gap in enumerate(parts):
        if isinstance(gap, str) or texts_of(Sequence(tuple(gap))) is None:
            continue
        if index:
            text = parts[index - 1]
            front = _WORD_END.search(text).group()
            if len(front) < len(text) or index == 1:
                parts[index - 1] = text.removesuffix(front)
                gap[:0] = _letters(front)
        if index < last:
            text = parts[index + 1]
            behind = _WORD_START.match(text).group()
            if len(behind) < len(text) or index + 1 == last:
                parts[index + 1] = text.removeprefix(behind)
                gap += _letters(behind)
    return [part for part in parts if part]


def _letters(text: str) -> list[Node]:
    return [Letter(((ord(letter), ord(letter)),)) for letter in text]


def _refused(what: str) -> Failure:
    return refused(what, "pattern")
