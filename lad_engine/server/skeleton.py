"""Answers of a given form: what the form fixes stands on the canvas from the start, what it leaves open are gaps.

Gaps whose text does not hold are noised and decoded again while the others stay fixed, for a few rounds; then the request fails and says
which. What a gap must hold is its own affair: a value of a schema (`structure`) or a part of a pattern (`pattern`).
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping

from ..text.codec import TextCodec
from .failures import Failure

ROUNDS = 4
# Positions of a gap that has no bound of its own; a shorter text leaves end tokens in its gap, which no text shows.
MOST_POSITIONS = 64
MOST_GAPS = 64
# Of all fixed texts together; no canvas holds as many.
MOST_FIXED_LETTERS = 1 << 16


class Gap(ABC):
    """One text to write: where it stands, and the text once it holds."""

    def __init__(self, place: str) -> None:
        self.place = place
        self.text: str | None = None

    @abstractmethod
    def read(self, raw: str) -> str | None:
        """Return what of the decoded text `raw` holds, None where nothing does."""

    @abstractmethod
    def positions(self, codec: TextCodec) -> tuple[int, int]:
        """Return the least and the most positions it is given; what room is left is shared by those whose most is more than their least."""


class Skeleton:
    """The answer as fixed texts and gaps in turn. `form` is what asks for it ("schema"), for messages."""

    def __init__(self, parts: Iterable[str | Gap], form: str) -> None:
        self.form = form
        self.parts: list[str | Gap] = []
        for is_text, run in itertools.groupby(self._bounded(parts), key=lambda part: isinstance(part, str)):
            same = list(run)
            self.parts += ["".join(same)] if is_text else same
        if not self.gaps:
            raise refused(f"the {form} leaves 0 gaps to write, expected 1 to {MOST_GAPS}", form)

    def _bounded(self, parts: Iterable[str | Gap]) -> Iterator[str | Gap]:
        """Yield the parts; refused as soon as they are too many, because a schema of a few words can stand for billions."""
        gaps = letters = 0
        for part in parts:
            if isinstance(part, str):
                letters += len(part)
            else:
                gaps += 1
            if gaps > MOST_GAPS:
                raise refused(f"the {self.form} leaves {gaps} gaps or more to write, expected 1 to {MOST_GAPS}", self.form)
            if letters > MOST_FIXED_LETTERS:
                raise refused(f"the {self.form} fixes {letters} letters or more, expected at most {MOST_FIXED_LETTERS}", self.form)
            yield part

    @property
    def gaps(self) -> list[Gap]:
        return [part for part in self.parts if isinstance(part, Gap)]

    @property
    def open(self) -> list[Gap]:
        return [gap for gap in self.gaps if gap.text is None]

    def sizes(self, codec: TextCodec, room: int) -> dict[str, int]:
        """Return the positions of every gap; those that may grow share what of `room` is left."""
        bounds = {gap.place: gap.positions(codec) for gap in self.gaps}
        fixed = sum(len(codec.encode_continuation(part)) for part in self.parts if isinstance(part, str))
        needed = fixed + sum(least for least, _ in bounds.values())
        if needed > room:
            raise Failure(
                400, f"max_new_tokens is {room}, expected at least {needed} for this {self.form}. Raise it.", param="max_new_tokens"
            )
        share = (room - needed) // max(1, sum(least < most for least, most in bounds.values()))
        return {place: min(least + share, most) for place, (least, most) in bounds.items()}

    def infill(self, sizes: Mapping[str, int]) -> str:
        """Return the answer as an infill: a gap for every one that does not hold yet."""
        out = []
        for part in self.parts:
            text = part if isinstance(part, str) else part.text
            out.append(text.replace("[[", "\\[[") if text is not None else f"[[{sizes[part.place]}]]")
        return "".join(out)

    def read(self, answer: str) -> None:
        """Take what holds from a decoded answer; a gap ends where the fixed text behind it begins."""
        at = 0
        for index, part in enumerate(self.parts):
            text = part if isinstance(part, str) else part.text
            if text is not None:
                start = answer.find(text, at)
                if start < 0:
                    return
                at = start + len(text)
                continue
            behind = self.parts[index + 1] if index + 1 < len(self.parts) else ""
            end = answer.find(behind, at) if isinstance(behind, str) and behind else len(answer)
            if end < 0:
                return
            part.text = part.read(answer[at:end])
            at = end

    def document(self) -> str:
        """Return the answer, of which every gap holds."""
        return "".join(part if isinstance(part, str) else part.text or "" for part in self.parts)


def choice_positions(codec: TextCodec, texts: Iterable[str]) -> int:
    """Return the positions of a gap that holds one of `texts`."""
    return max(1, *(len(codec.encode_continuation(text)) for text in texts))


def refused(what: str, form: str) -> Failure:
    return Failure(400, f"response_format: {what}. Change the {form}.", param="response_format")
