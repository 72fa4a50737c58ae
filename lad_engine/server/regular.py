"""Regular expressions as trees, and whether a text begins with one: every position of the tree at once, so that no pattern backtracks.

The automaton has one state per letter of the tree (Glushkov): sets of states are the bits of an integer, and a text of n letters costs
n steps of at most as many operations as there are letters, whatever the pattern nests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

# Letters of a text that are looked at.
MOST_READ = 512
# Texts of a choice that are written out one by one.
MOST_TEXTS = 256
KINDS: dict[str, Callable[[str], bool]] = {
    "digit": str.isdecimal,
    "space": str.isspace,
    "word": lambda letter: letter.isalnum() or letter == "_",
}


@dataclass(frozen=True)
class Letter:
    """One letter of a set: within one of `ranges` of code points, or of one of `kinds` (a name of KINDS, whether it must not hold)."""

    ranges: tuple[tuple[int, int], ...] = ()
    kinds: tuple[tuple[str, bool], ...] = ()
    is_negated: bool = False

    def holds(self, letter: str) -> bool:
        is_in = any(low <= ord(letter) <= high for low, high in self.ranges)
        return (is_in or any(KINDS[name](letter) != is_not for name, is_not in self.kinds)) != self.is_negated

    @property
    def literal(self) -> str | None:
        """The letter, where it can be only one."""
        texts = texts_of(self)
        return texts[0] if texts is not None and len(texts) == 1 else None


@dataclass(frozen=True)
class Sequence:
    """One after the other."""

    items: tuple[Node, ...]


@dataclass(frozen=True)
class Choice:
    """One of them."""

    items: tuple[Node, ...]


@dataclass(frozen=True)
class Repeat:
    """`least` to `most` times, None without end."""

    item: Node
    least: int
    most: int | None


Node = Letter | Sequence | Choice | Repeat


def count_letters(node: Node) -> int:
    """Return the states that a tree's automaton has: its letters, those that repeat as often as they are counted."""
    if isinstance(node, Letter):
        return 1
    if isinstance(node, Repeat):
        return count_letters(node.item) * (node.most if node.most is not None else max(node.least, 1))
    return sum(map(count_letters, node.items))


def width_of(node: Node) -> tuple[int, int | None]:
    """Return the fewest and the most letters of a text, None without end."""
    if isinstance(node, Letter):
        return 1, 1
    if isinstance(node, Repeat):
        low, high = width_of(node.item)
        return low * node.least, None if high is None or node.most is None else high * node.most
    lows, highs = zip(*map(width_of, node.items), strict=True) if node.items else ((0,), (0,))
    if isinstance(node, Choice):
        return min(lows), None if None in highs else max(highs)
    return sum(lows), None if None in highs else sum(highs)


def texts_of(node: Node) -> list[str] | None:
    """Return all texts of a tree of literals; None where letters are of a range or a kind, or where they are too many."""
    if isinstance(node, Letter):
        is_listed = not node.kinds and not node.is_negated and all(low == high for low, high in node.ranges)
        return sorted({chr(low) for low, _ in node.ranges}) if is_listed else None
    if isinstance(node, Choice):
        every = [texts_of(item) for item in node.items]
        return None if None in every else _few({text for texts in every for text in texts or ()})
    if isinstance(node, Sequence):
        return _joined_texts(node.items)
    if node.most is None:
        return None
    out: set[str] = set()
    for times in range(node.least, node.most + 1):
        texts = _joined_texts((node.item,) * times)
        if texts is None or _few(out := out | set(texts)) is None:
            return None
    return sorted(out)


def _joined_texts(items: tuple[Node, ...]) -> list[str] | None:
    out = [""]
    for item in items:
        texts = texts_of(item)
        out = None if texts is None or len(out) * len(texts) > MOST_TEXTS else [front + text for front in out for text in texts]
        if out is None:
            return None
    return _few(set(out))


def _few(texts: set[str]) -> list[str] | None:
    return sorted(texts) if len(texts) <= MOST_TEXTS else None


class Matcher:
    """The automaton of a tree.

    first, last: the letters a text may begin and end with; follow: for each letter, those that may come next; may_be_empty.
    """

    def __init__(self, node: Node) -> None:
        self.follow: list[int] = []
        self._states: dict[Letter, int] = {}
        self._of_letter: dict[str, int] = {}
        self.may_be_empty, self.first, self.last = self._lay(node)

    def ends(self, text: str) -> Iterator[int]:
        """Yield the lengths of the tree's texts that `text` begins with, ascending."""
        if self.may_be_empty:
            yield 0
        active = self.first
        for at, letter in enumerate(text[:MOST_READ], start=1):
            active &= self._holding(letter)
            if active & self.last:
                yield at
            active = self._after(active)
            if not active:
                return

    def takes(self, letter: str) -> bool:
        """Return whether a text of the tree may hold `letter`."""
        return self._holding(letter) != 0

    def _holding(self, letter: str) -> int:
        if letter not in self._of_letter:
            self._of_letter[letter] = sum(states for wanted, states in self._states.items() if wanted.holds(letter))
        return self._of_letter[letter]

    def _after(self, states: int) -> int:
        out = 0
        for index in _bits(states):
            out |= self.follow[index]
        return out

    def _lay(self, node: Node) -> tuple[bool, int, int]:
        """Add the states of a tree; returns whether it may be empty, and the states it may begin and end with."""
        if isinstance(node, Letter):
            state = 1 << len(self.follow)
            self.follow.append(0)
            self._states[node] = self._states.get(node, 0) | state
            return False, state, state
        if isinstance(node, Choice):
            parts = [self._lay(item) for item in node.items]
            first = last = 0
            for _, begins, ends in parts:
                first, last = first | begins, last | ends
            return any(is_empty for is_empty, _, _ in parts), first, last
        if isinstance(node, Sequence):
            return self._in_turn(self._lay(item) for item in node.items)
        return self._in_turn(self._copies(node))

    def _copies(self, node: Repeat) -> Iterator[tuple[bool, int, int]]:
        """Yield a repeat's copies: those beyond the least may be empty, and the last of an endless one follows itself."""
        most = node.most if node.most is not None else max(node.least, 1)
        for number in range(most):
            is_empty, first, last = self._lay(node.item)
            if node.most is None and number == most - 1:
                self._link(last, first)
            yield is_empty or number >= node.least, first, last

    def _in_turn(self, parts: Iterator[tuple[bool, int, int]]) -> tuple[bool, int, int]:
        is_empty, first, last = True, 0, 0
        for may_be_empty, begins, ends in parts:
            self._link(last, begins)
            first, last = first | begins if is_empty else first, last | ends if may_be_empty else ends
            is_empty = is_empty and may_be_empty
        return is_empty, first, last

    def _link(self, before: int, behind: int) -> None:
        for index in _bits(before):
            self.follow[index] |= behind


def _bits(states: int) -> Iterator[int]:
    while states:
        lowest = states & -states
        yield lowest.bit_length() - 1
        states ^= lowest
