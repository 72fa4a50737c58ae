"""What requests may say: one strict model per endpoint; sampling parameters are those of SamplingParams, read from it."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from ..config import ALIASES, CHOICES, LEAST, MOST, RANGES, SamplingParams
from ..errors import ConfigError

# Sizes no canvas has; they keep a number from overflowing in a table before it is compared with what fits.
LARGEST = 2**31 - 1
MAX_STOPS, MAX_STOP_LETTERS, MAX_TOKEN_IDS = 16, 256, 64
MAX_MESSAGES, MAX_PATTERN_LETTERS = 4096, 512
Names = str | None


class Body(BaseModel):
    """Nothing is converted and nothing unknown is let through."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())


def _sampling_fields() -> Iterator[tuple[str, Any]]:
    """Yield (name, type) of every sampling parameter and of its aliases, with the range `config` gives it."""
    for field in dataclasses.fields(SamplingParams):
        kind = _sampling_type(field.name, field.type)
        for name in (field.name, *(alias for alias, canonical in ALIASES.items() if canonical == field.name)):
            yield name, kind
    yield "max_completion_tokens", _sampling_type("max_new_tokens", "int")


def _sampling_type(name: str, kind: Any) -> Any:
    if name in CHOICES:
        return Literal[CHOICES[name]]
    if name in LEAST:
        return Annotated[int, Field(ge=LEAST[name], le=MOST[name])]
    if name in RANGES:
        low, high = RANGES[name]
        return Annotated[float, Field(ge=low, le=high, allow_inf_nan=False)]
    if name == "suppress_tokens":
        return Annotated[list[Annotated[int, Field(ge=0, le=LARGEST)]], Field(max_length=MAX_TOKEN_IDS)]
    if name == "stop":
        text = Annotated[str, Field(min_length=1, max_length=MAX_STOP_LETTERS)]
        return text | Annotated[list[text], Field(max_length=MAX_STOPS)]
    return {"bool": bool, "str": str}[kind]


Sampling = create_model("Sampling", __base__=Body, **{name: (kind | None, None) for name, kind in _sampling_fields()})
SAMPLING_NAMES = tuple(Sampling.model_fields)


class StreamOptions(Body):
    """include_usage: a last chunk with the counts. steps: a chunk for every refinement step, with what changed or the whole canvas."""

    include_usage: bool = False
    steps: bool | Literal["changes", "canvas"] = False


class NamedSchema(Body):
    """A JSON schema by OpenAI's rules; which keywords are read is in `structure.KEYWORDS`. strict or not, the answer holds to it."""

    name: Annotated[str, Field(min_length=1, max_length=128)]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    description: str | None = None
    strict: bool | None = None


class TextFormat(Body):
    """Any text."""

    type: Literal["text"]


class SchemaFormat(Body):
    """JSON of a schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


class RegexFormat(Body):
    """A text that matches a pattern of Python's re as a whole; what of it is read is in `pattern`."""

    type: Literal["regex"]
    pattern: Annotated[str, Field(min_length=1, max_length=MAX_PATTERN_LETTERS)]


# OpenAI's response_format, and a regex as servers beside OpenAI spell it.
AnswerFormat = Annotated[TextFormat | SchemaFormat | RegexFormat, Field(discriminator="type")]


class Request(Sampling):  # type: ignore[misc, valid-type]
    """What every endpoint that answers takes; n is OpenAI's, with the only value that means nothing here.

    context_window: prompt and answer together, in place of the answer's length.
    """

    model: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Annotated[str, Field(max_length=512)] | None = None
    context_window: Annotated[int, Field(ge=2, le=LARGEST)] | None = None
    n: Annotated[int, Field(ge=1, le=1)] | None = None


class TextPart(Body):
    """A part of a message; only text is understood."""

    type: Literal["text"]
    text: str


class Message(Body):
    """One turn; developer is OpenAI's newer word for system."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1)]


class ChatBody(Request):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    draft: str | None = None
    infill: str | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=0)] | None = None
    response_format: AnswerFormat | None = None


class CompletionBody(Request):
    """POST /v1/completions: the prompt is continued as it stands; logprobs 0 gives the tokens' own."""

    prompt: Annotated[str, Field(min_length=1)]
    draft: str | None = None
    logprobs: Annotated[int, Field(ge=0, le=0)] | None = None
    echo: Literal[False] | None = None
    best_of: Annotated[int, Field(ge=1, le=1)] | None = None
    response_format: AnswerFormat | None = None


class Span(Body):
    """Letters [start, end) of the text are written anew.

    positions: how many tokens there will be, None as many as now. keep: begin from the words that stand there (noise_start below 1).
    """

    start: Annotated[int, Field(ge=0, le=LARGEST)]
    end: Annotated[int, Field(ge=0, le=LARGEST)]
    positions: Annotated[int, Field(ge=1, le=LARGEST)] | None = None
    keep: bool = False


class EditBody(Request):
    """POST /v1/edits: `text` with spans that may change, or an `infill` with gaps like [[8]]; everything else stays as it is."""

    instruction: Annotated[str, Field(min_length=1)] | None = None
    text: Annotated[str, Field(min_length=1)] | None = None
    spans: Annotated[list[Span], Field(min_length=1, max_length=256)] | None = None
    infill: Annotated[str, Field(min_length=1)] | None = None
    format: Literal["chat", "space", "raw"] | None = None


class AdapterBody(Body):
    """POST /v1/adapters: load a file or folder below the server's adapter folder, or replace the adapter of that name."""

    name: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    path: Annotated[str, Field(min_length=1, max_length=1024)]


def asked_settings(body: Request) -> dict[str, Any]:
    """Return the sampling parameters a request gave, profile excepted; null counts as not given.

    Raises:
        ConfigError: the answer's length is given by OpenAI's newer name and by another.
    """
    given = {name: getattr(body, name) for name in SAMPLING_NAMES if name in body.model_fields_set and name != "profile"}
    given = {name: value for name, value in given.items() if value is not None}
    if "max_completion_tokens" in given:
        length = given.pop("max_completion_tokens")
        other = next((name for name in given if ALIASES.get(name, name) == "max_new_tokens"), None)
        if other is not None:
            raise ConfigError(f"max_completion_tokens is given beside {other}, expected one of them. Leave one out.")
        given["max_new_tokens"] = length
    return given


def refusal(error: ValidationError, body: type[BaseModel]) -> tuple[str, str | None]:
    """Return what is wrong with a request as one sentence, and the name of the parameter."""
    first = error.errors(include_url=False, include_context=False)[0]
    place = ".".join(str(part) for index, part in enumerate(first["loc"]) if not _is_branch(part, first["loc"][:index]))
    name = str(first["loc"][0]) if first["loc"] else None
    if first["type"] == "json_invalid":
        return f"body: it is not JSON ({first['msg'].removeprefix('Invalid JSON: ')}). Send one JSON object.", None
    if first["type"] == "extra_forbidden":
        if len(first["loc"]) > 1:
            return f"{place} is not a parameter of this endpoint. Leave it out.", name
        close = difflib.get_close_matches(place, body.model_fields, n=2)
        hint = f"Did you mean {' or '.join(close)}?" if close else "Leave it out; /openapi.json lists what is read."
        return f"{place} is not a parameter of this endpoint. {hint}", name
    if first["type"] == "missing":
        return f"{place} is missing, expected it. Give it.", name
    shown, wanted = repr(first["input"]), first["msg"].removeprefix("Input should be ")
    if wanted == first["msg"]:
        # "List should have at least 1 item after validation, not 0"
        wanted = "another: " + wanted[:1].lower() + wanted[1:].replace(" after validation", "")
    return f"{place or 'body'} is {shown if len(shown) <= 80 else shown[:77] + '...'}, expected {wanted}.", name


def _is_branch(part: Any, front: tuple[Any, ...]) -> bool:
    """Pydantic names the branch of a union in a place; callers only know their own names."""
    return front == ("response_format",) or (
        isinstance(part, str) and (part in ("str", "constrained-str", "bool", "int", "float") or "[" in part)
    )
