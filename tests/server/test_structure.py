"""JSON of a schema: fixed texts and gaps, values kept or decoded again, and what is refused."""

from __future__ import annotations

import json

import pytest
from live_server import HELLO

from lad_engine.server.failures import Failure
from lad_engine.server.structure import schema_skeleton

CITY = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "minLength": 2, "maxLength": 12},
        "size": {"type": "integer", "minimum": 1, "maximum": 99},
        "kind": {"type": "string", "enum": ["big", "small"]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 2},
        "version": {"const": 2},
    },
    "additionalProperties": False,
}
SIZES = {"/city": 5, "/size": 3, "/kind": 2, "/tags/0": 1, "/tags/1": 1}


def test_values_that_hold_stay_and_the_others_are_gaps_again():
    skeleton = schema_skeleton(CITY)
    assert skeleton.infill(SIZES) == '{"city": "[[5]]", "size": [[3]], "kind": "[[2]]", "tags": [[[1]], [[1]]], "version": 2}'
    skeleton.read('{"city": " Rome", "size": 700, "kind": "huge", "tags": [True, maybe], "version": 2}')
    assert [gap.place for gap in skeleton.open] == ["/size", "/kind", "/tags/1"]
    assert skeleton.infill(SIZES).startswith('{"city": "Rome", "size": [[3]], "kind": "[[2]]", "tags": [true, [[1]]')
    skeleton.read('{"city": "Rome", "size":  7 , "kind": "big", "tags": [true, false], "version": 2}')
    assert skeleton.open == []
    assert json.loads(skeleton.document()) == {"city": "Rome", "size": 7, "kind": "big", "tags": [True, False], "version": 2}


TEXTS = [('Rome", "more": "x', "Rome"), ('a\\"b', 'a\\"b'), ("R", None), ("x" * 13, None), ("a\nb", None), ("\\u12", None)]


@pytest.mark.parametrize("written,kept", TEXTS)
def test_a_text_is_valid_json_within_its_length(written, kept):
    skeleton = schema_skeleton({"type": "object", "properties": {"city": CITY["properties"]["city"]}})
    skeleton.read(f'{{"city": "{written}"}}')
    assert skeleton.gaps[0].text == kept


def nested(levels: int, inner: dict) -> dict:
    """A schema of a few words for 16 ** levels values."""
    for _ in range(levels):
        inner = {"type": "array", "items": inner, "minItems": 16, "maxItems": 16}
    return inner


@pytest.mark.parametrize(
    "schema,says",
    [
        ({"type": "object", "properties": {"a": {"type": "string", "pattern": "a+"}}}, "'pattern' at /a"),
        ({"type": "object"}, "properties at /"),
        ({"type": "array", "items": {"type": "null"}, "minItems": 1}, "no fixed length"),
        ({"anyOf": []}, "type at /"),
        ({"type": "object", "properties": {"a": {"const": 1}}}, "0 gaps"),
        ({"type": "integer", "minimum": "a"}, "minimum at /"),
        ({"type": "integer", "minimum": None}, "minimum at /"),
        ({"type": ["string", "null"]}, r"type at / is .*'string', 'null'"),
        ({"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a", "b"]}, "required at /"),
        ({"type": "object", "properties": {"a": {"type": "string"}}, "required": [{}]}, "required at /"),
        ({"type": "object", "properties": {"a": {"const": [1, float("inf")]}}}, "const at /a"),
        (nested(8, {"type": "integer"}), "65 gaps or more"),
        (nested(8, {"type": "null"}), "letters or more"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(schema, says):
    with pytest.raises(Failure, match=says):
        schema_skeleton(schema)


def test_the_server_answers_with_the_schema_or_says_that_it_could_not(served):
    body = {"messages": HELLO, "steps": 4, "max_tokens": 200, "model": "first"}
    text = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object", "properties": {"a": {"type": "string"}}}}}
    seen = set()
    for seed in range(6):
        answer = served.post("/v1/chat/completions", json={**body, "max_tokens": 12, "seed": seed, "response_format": text})
        seen.add(answer.status_code)
        if answer.status_code == 200:
            assert list(json.loads(answer.json()["choices"][0]["message"]["content"])) == ["a"]
        else:
            assert answer.status_code == 422 and answer.json()["error"]["code"] == "format_not_met"
    assert 200 in seen
    city = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY}}
    failed = served.post("/v1/chat/completions", json={**body, "response_format": city})
    assert failed.status_code == 422, failed.text
    assert "/kind" in failed.json()["error"]["message"]
    for wrong in ({"stream": True}, {"max_tokens": 8}, {"response_format": {"type": "json_schema"}}, {"draft": "a"}):
        refused = served.post("/v1/chat/completions", json={**body, "response_format": city, **wrong})
        assert refused.status_code == 400 and refused.json()["error"]["param"] in ("stream", "max_new_tokens", "response_format", "draft")
