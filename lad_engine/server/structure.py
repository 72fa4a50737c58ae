"""Answers that are JSON of a given schema: its punctuation and names are fixed, its values are gaps."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ..text.codec import TextCodec
from .failures import Failure
from .skeleton import MOST_POSITIONS, Gap, Skeleton, choice_positions, refused

NUMBER_POSITIONS = 6
MOST_DEPTH, MOST_ITEMS = 8, 16
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


class Value(Gap):
    """One value to write: what it must be, and its JSON text once it holds."""

    def __init__(self, place: str, schema: Mapping[str, Any]) -> None:
        super().__init__(place)
        self.schema = schema

    @property
    def is_text(self) -> bool:
        return self.schema["type"] == "string"

    def read(self, raw: str) -> str | None:
        """Return the JSON text where `raw` is a value of the schema."""
        raw = raw.strip()
        if self.is_text:
            # A model that writes the closing quote into the gap means the text to end there.
            raw = _UNTIL_QUOTE.match(raw).group().strip() or raw
        elif self.schema["type"] == "boolean":
            raw = raw.lower()
        try:
            value = json.loads(f'"{raw}"' if self.is_text else raw)
        except (ValueError, RecursionError):
            return None
        return raw if _holds(value, self.schema) else None

    def positions(self, codec: TextCodec) -> tuple[int, int]:
        choices = self.schema.get("enum") or ([True, False] if self.schema["type"] == "boolean" else None)
        if choices is None:
            return (1, MOST_POSITIONS) if self.is_text else (NUMBER_POSITIONS, NUMBER_POSITIONS)
        written = (json.dumps(choice)[1:-1] if isinstance(choice, str) else json.dumps(choice) for choice in choices)
        most = choice_positions(codec, written)
        return most, most


def schema_skeleton(schema: Mapping[str, Any]) -> Skeleton:
    """Return the skeleton of a schema's JSON; a Failure names what of the schema is not supported."""
    return Skeleton(_parts(schema, "", 0), "schema")


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
        try:
            json.dumps(schema["const"], allow_nan=False)
        except ValueError as error:
            raise _refused(f"const at {where} holds a number that JSON has not, expected finite ones") from error
        return "const"
    kind = schema.get("type")
    if not isinstance(kind, str) or kind not in KEYWORDS:
        raise _refused(f"type at {where} is {str(kind)[:40]!r}, expected one of {', '.join(KEYWORDS)}")
    unknown = sorted(set(schema) - NOTES - KEYWORDS[kind])
    if unknown:
        raise _refused(f"{unknown[0]!r} at {where} is not supported, expected only {', '.join(sorted(KEYWORDS[kind]))} with type {kind}")
    for name in ("minimum", "maximum", "minLength", "maxLength"):
        limit = schema.get(name, 0)
        if isinstance(limit, bool) or not isinstance(limit, (int, float)):
            raise _refused(f"{name} at {where} is {str(limit)[:40]!r}, expected a number")
    if kind == "object" and not (isinstance(schema.get("properties"), dict) and schema["properties"]):
        raise _refused(f"properties at {where} is missing or empty, expected at least one: names are laid out as they are given")
    if kind == "object" and not _are_names(schema.get("required", []), schema["properties"]):
        raise _refused(f"required at {where} names what is not among its properties, expected only those: all of them are written")
    if kind == "object" and schema.get("additionalProperties", False) is not False:
        raise _refused(f"additionalProperties at {where} is set, expected false: only named properties are written")
    least, most = schema.get("minItems"), schema.get("maxItems")
    if kind == "array" and not (type(least) is int and least == most and 0 < least <= MOST_ITEMS):
        raise _refused(f"the array at {where} has no fixed length, expected minItems and maxItems equal, 1 to {MOST_ITEMS}")
    choices = schema.get("enum", [""])
    if not isinstance(choices, list) or not 0 < len(choices) <= 256:
        raise _refused(f"enum at {where} is no list of 1 to 256 values")
    return str(kind)


def _are_names(required: Any, properties: Mapping[str, Any]) -> bool:
    return isinstance(required, list) and all(isinstance(name, str) and name in properties for name in required)


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


def _refused(what: str) -> Failure:
    return refused(what, "schema")
