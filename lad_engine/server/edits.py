"""Rewriting spans of a text: the spans become the gaps of an infill, everything between them stays as it is."""

from __future__ import annotations

from collections.abc import Sequence

from ..text.codec import TextCodec
from .bodies import EditBody, Span
from .failures import Failure


def infill_of(body: EditBody, codec: TextCodec) -> str:
    """Return an edit request as an infill.

    Raises:
        Failure: it brings both forms or neither, or spans that overlap, are empty, or lie beyond the text.
    """
    if (body.text is None) == (body.infill is None):
        raise Failure(400, "text: give either text with spans, or infill, expected exactly one of them. Leave one out.", param="text")
    if body.infill is not None:
        if body.spans is not None:
            raise Failure(400, "spans is given beside infill, expected it only with text. An infill brings its own gaps.", param="spans")
        return body.infill
    if body.spans is None:
        raise Failure(400, "spans is missing, expected at least one with text. Say which letters may change.", param="spans")
    return _with_gaps(body.text or "", sorted(body.spans, key=lambda span: span.start), codec)


def _with_gaps(text: str, spans: Sequence[Span], codec: TextCodec) -> str:
    parts, at = [], 0
    for span in spans:
        if not at <= span.start <= span.end <= len(text) or (span.start == span.end and span.positions is None):
            raise Failure(
                400,
                f"spans: [{span.start}, {span.end}) is one, expected {at} <= start <= end <= {len(text)} behind the span before it, and "
                "positions where it is empty. Correct it.",
                param="spans",
            )
        if at < span.start and text[span.start - 1] == "\\":
            # An infill reads it together with the gap, as a literal [[.
            raise Failure(
                400,
                f"spans: a backslash stands before [{span.start}, {span.end}), expected it within. Start one letter earlier.",
                param="spans",
            )
        words = text[span.start : span.end]
        size = span.positions or max(1, len(codec.encode_continuation(words)))
        if span.keep and ("]]" in f"{words}]" or not words.strip()):
            raise Failure(
                400,
                f"spans: keep is set for {words[:40]!r}, expected words without ]] and no ] at their end. Leave keep out.",
                param="spans",
            )
        parts += [_literal(text[at : span.start]), f"[[{size}:{words}]]" if span.keep else f"[[{size}]]"]
        at = span.end
    return "".join([*parts, _literal(text[at:])])


def _literal(text: str) -> str:
    return text.replace("[[", "\\[[")
