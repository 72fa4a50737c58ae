"""Answers that are JSON of a given schema: its punctuation and names are fixed tokens of the canvas, its values are gaps.

Values that do not hold are noised and decoded again while the others stay fixed, for a few rounds; then the request fails and says which.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..text.codec import TextCodec
from .failures import Failure

ROUNDS = 4
# Positions of a number, and the most of a text; a shorter value leaves end tokens in its gap, which no text shows.
NUMBER_POSITIONS, MOST_POSITIONS = 6, 64
MOST_FIELDS, MOST_DEPTH, MOST_ITEMS = 64, 8, 16
NOTES = {"title", "description", "$schema", "$id", "examples", "default"}
# Everything in front of the first quote that is not escaped.
_UNTIL_QUOTE = re.compile(r'(?:[^"\\]|\\.)*', re.DOTALL)
KEYWORDS = {
    "object": {"type", "properties", "required", "additionalProperties"},
    "array": {"type", "items", "minItems", "maxItems"},
    "string": {"type", "minLength", "maxLength", "enum"},
    "integer": {"type", "minimum", "maximum", "enum"},
    "number": {"type", "minimum", "maximum", "enum"},
    "boolean": {"type"},
    "null": {"type"},
}


@dataclass
class Value:
    """One value to write: where it stands, what it must be, and its JSON text once it holds."""

    place: str
    schema: Mapping[str, Any]
    text: str | None = None

    @property
    def is_text(self) -> bool:
        return self.schema["type"] == "string"

    def accept(self, raw: str) -> bool:
        """Take what stands in the gap where it is a value of the schema; returns whether it is."""
        raw = raw.strip()
        if self.is_text:
            # A model that writes the closing quote into the gap means the text to end there.
            raw = _UNTIL_QUOTE.match(raw).group().strip() or raw
        elif self.schema["type"] == "boolean":
            raw = raw.lower()
        try:
            value = json.loads(f'"{raw}"' if self.is_text else raw)
        except (ValueError, RecursionError):
            return False
        if _holds(value, self.schema):
            self.text = raw
        return self.text is not None


class Skeleton:
    """The document as fixed texts and values in turn."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self.parts: list[str | Value] = []
        for part in _parts(schema, "", 0):
            if isinstance(part, str) and self.parts and isinstance(self.parts[-1], str):
                self.parts[-1] += part
            else:
                self.parts.append(part)
        if not 0 < len(self.values) <= MOST_FIELDS:
            raise _refused(f"the schema has {len(self.values)} values to write, expected 1 to {MOST_FIELDS}")

    @property
    def values(self) -> list[Value]:
        return [part for part in self.parts if isinstance(part, Value)]

    @property
    def open(self) -> list[Value]:
        return [value for value in self.values if value.text is None]

    def sizes(self, codec: TextCodec, room: int) -> dict[str, int]:
        """Return the positions of every value; texts share what the others leave of `room`."""
        sizes = {value.place: _least(value, codec) for value in self.values}
        texts = [value for value in self.values if value.is_text and "enum" not in value.schema]
        fixed = sum(len(codec.encode_continuation(part)) for part in self.parts if isinstance(part, str))
        left = room - fixed - sum(size for place, size in sizes.items() if place not in {value.place for value in texts})
        if left < len(texts):
            needed = room - left + len(texts)
            raise Failure(400, f"max_new_tokens is {room}, expected at least {needed} for this schema. Raise it.", param="max_new_tokens")
        return sizes | {value.place: min(left // len(texts), MOST_POSITIONS) for value in texts}

    def infill(self, sizes: Mapping[str, int]) -> str:
        """Return the document as an infill: a gap for every value that does not hold yet."""
        out = []
        for part in self.parts:
            text = part if isinstance(part, str) else part.text
            out.append(text.replace("[[", "\\[[") if text is not None else f"[[{sizes[part.place]}]]")
        return "".join(out)

    def read(self, answer: str) -> None:
        """Take the values that hold from a decoded document; a value ends where the fixed text behind it begins."""
        at = 0
        for index, part in enumerate(self.parts):
            text = part if isinstance(part, str) else part.text
            if text is not None:
                at = answer.find(text, at) + len(text)
                continue
            behind = self.parts[index + 1] if index + 1 < len(self.parts) else ""
            end = answer.find(behind, at) if isinstance(behind, str) and behind else len(answer)
            if end < 0:
                return
            part.accept(answer[at:end])
            at = end

    def document(self) -> str:
        """Return the JSON text, of which every value holds."""
        return "".join(part if isinstance(part, str) else part.text or "" for part in self.parts)


def _parts(schema: Any, place: str, depth: int) -> Iterator[str | Value]:
    kind = _checked(schema, place, depth)
    if "const" in schema:
        yield json.dumps(schema["const"])
    elif kind == "object":
        for index, (name, inner) in enumerate(schema["properties"].items()):
            yield f"{', ' if index else '{'}{json.dumps(name)}: "
            yield from _parts(inner, f"{place}/{name}", depth + 1)
        yield "}"
    elif kind == "array":
        for index in range(schema["minItems"]):
            yield ", " if index else "["
            yield from _parts(schema["items"], f"{place}/{index}", depth + 1)
        yield "]"
    elif kind == "null":
        yield "null"
    else:
        quote = '"' if kind == "string" else ""
        yield from (quote, Value(place or "/", schema), quote)


def _checked(schema: Any, place: str, depth: int) -> str:
    """Return a schema's type; a Failure names what of it is not supported."""
    where = place or "/"
    if not isinstance(schema, dict) or depth > MOST_DEPTH:
        raise _refused(f"the schema at {where} is no object or too deep, expected at most {MOST_DEPTH} levels of schemas")
    if "const" in schema and not set(schema) - NOTES - {"const", "type"}:
        return "const"
    kind = schema.get("type")
    if kind not in KEYWORDS:
        raise _refused(f"type at {where} is {str(kind)[:40]!r}, expected one of {', '.join(KEYWORDS)}")
    unknown = sorted(set(schema) - NOTES - KEYWORDS[kind])
    if unknown:
        raise _refused(f"{unknown[0]!r} at {where} is not supported, expected only {', '.join(sorted(KEYWORDS[kind]))} with type {kind}")
    for name in ("minimum", "maximum", "minLength", "maxLength"):
        limit = schema.get(name)
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, (int, float))):
            raise _refused(f"{name} at {where} is {str(limit)[:40]!r}, expected a number")
    if kind == "object" and not (isinstance(schema.get("properties"), dict) and schema["properties"]):
        raise _refused(f"properties at {where} is missing or empty, expected at least one: names are laid out as they are given")
    if kind == "object" and schema.get("additionalProperties", False) is not False:
        raise _refused(f"additionalProperties at {where} is set, expected false: only named properties are written")
    least, most = schema.get("minItems"), schema.get("maxItems")
    if kind == "array" and not (type(least) is int and least == most and 0 < least <= MOST_ITEMS):
        raise _refused(f"the array at {where} has no fixed length, expected minItems and maxItems equal, 1 to {MOST_ITEMS}")
    choices = schema.get("enum", [""])
    if not isinstance(choices, list) or not 0 < len(choices) <= 256:
        raise _refused(f"enum at {where} is no list of 1 to 256 values")
    return str(kind)


def _holds(value: Any, schema: Mapping[str, Any]) -> bool:
    kind = {"string": str, "integer": int, "number": (int, float), "boolean": bool}[schema["type"]]
    if not isinstance(value, kind) or (isinstance(value, bool) and schema["type"] != "boolean"):
        return False
    if isinstance(value, float) and not math.isfinite(value):
        return False
    size = len(value) if isinstance(value, str) else value
    low, high = ("minLength", "maxLength") if isinstance(value, str) else ("minimum", "maximum")
    if "enum" in schema and value not in schema["enum"]:
        return False
    return schema.get(low, -math.inf) <= size <= schema.get(high, math.inf)


def _least(value: Value, codec: TextCodec) -> int:
    """Return the positions a value needs at most, a text's left for later."""
    choices = value.schema.get("enum") or ([True, False] if value.schema["type"] == "boolean" else None)
    if choices is None:
        return NUMBER_POSITIONS
    written = [json.dumps(choice)[1:-1] if isinstance(choice, str) else json.dumps(choice) for choice in choices]
    return max(1, *(len(codec.encode_continuation(text)) for text in written))


def _refused(what: str) -> Failure:
    return Failure(400, f"response_format: {what}. Change the schema.", param="response_format")
