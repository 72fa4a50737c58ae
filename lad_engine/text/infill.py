"""Text with gaps: `[[8]]` opens 8 positions, `[[8:words]]` opens 8 that start from these words, `[[:words]]` as many as the words need.

Everything outside a gap is fixed. A literal `[[` is written `\\[[`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import RequestError

# In [[[8]] the first bracket is text.
_GAP = re.compile(r"\\\[\[|\[\[(?!\[)(?P<body>.*?)\]\]|\[\[(?!\[)", re.DOTALL)
_BODY = re.compile(r"\s*(?P<size>\d{0,18})\s*(?::(?P<draft>.*))?", re.DOTALL)


@dataclass(frozen=True)
class Span:
    """One stretch of an infill: fixed `text` (size None, is_open False), or a gap of `size` positions starting from `text`."""

    text: str
    is_open: bool
    size: int | None = None


def parse_infill(source: str) -> list[Span]:
    """Split `source` at its gaps; RequestError on a malformed gap or when there is none."""
    spans: list[Span] = []
    fixed, last = "", 0
    for match in _GAP.finditer(source):
        fixed += source[last : match.start()]
        last = match.end()
        if match.group() == "\\[[":
            fixed += "[["
            continue
        if match["body"] is None:
            raise RequestError(f"infill: the gap at character {match.start()} is not closed, expected ]]. Write a literal [[ as \\[[.")
        if fixed:
            spans.append(Span(fixed, is_open=False))
            fixed = ""
        spans.append(_gap(match["body"]))
    fixed += source[last:]
    if fixed:
        spans.append(Span(fixed, is_open=False))
    if not any(span.is_open for span in spans):
        raise RequestError("infill: there is no gap, expected at least one such as [[8]]. Open some positions.")
    return spans


def _gap(body: str) -> Span:
    match = _BODY.fullmatch(body)
    size = int(match["size"]) if match and match["size"] else None
    draft = match["draft"] if match and match["draft"] else ""
    if match is None or size == 0 or (size is None and not draft):
        raise RequestError(
            f"infill: the gap [[{body[:40]}]] is not one, expected [[8]], [[8:words]] or [[:words]]. Write a literal [[ as \\[[."
        )
    return Span(draft, is_open=True, size=size)
