"""From an engine's error to an HTTP status and OpenAI's error object."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from ..config import ALIASES
from ..errors import (
    AdapterError,
    ClosedError,
    ConfigError,
    DeadlineError,
    DeviceMemoryError,
    LadError,
    OverloadError,
    RequestCancelledError,
    RequestError,
)

# How long a client should wait where nobody knows: for a drained server's successor.
RETRY_CLOSED_S = 5
_STATUS: tuple[tuple[type[LadError], int, str, str | None], ...] = (
    (OverloadError, 429, "rate_limit_error", "overloaded"),
    (ClosedError, 503, "server_error", "shutting_down"),
    (DeadlineError, 504, "server_error", "deadline_exceeded"),
    (RequestCancelledError, 499, "server_error", "cancelled"),
    (DeviceMemoryError, 503, "server_error", "out_of_memory"),
    (RequestError, 400, "invalid_request_error", None),
    (ConfigError, 400, "invalid_request_error", None),
    (AdapterError, 400, "invalid_request_error", "adapter"),
    (LadError, 500, "server_error", None),
)
# What a sentence of the engine calls something, and what the endpoints call it.
_NAMES = {
    "prompt": ("messages", "prompt", "instruction", "text", "infill"),
    "draft": ("draft", "spans", "infill"),
    "infill": ("infill", "spans", "text"),
    "adapter": ("model", "path", "name"),
}
_ROW = re.compile(r"(canvas|prompt) \d+: ")
_WINDOW = re.compile(r"expected at most (\d+) (?:\(the model's window\)|\(max_tokens\))")


class Failure(Exception):
    """A refusal or failure, as the client will see it."""

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.param, self.code, self.headers = status, message, kind, param, code, dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """Return OpenAI's error object."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def failure_of(error: LadError, body: BaseModel | None = None) -> Failure:
    """Return how an engine's error is answered; of a request's `body` it names the parameter that it is about."""
    _, status, kind, code = next(row for row in _STATUS if isinstance(error, row[0]))
    message, headers = " ".join(str(error).split()), {}
    if isinstance(error, OverloadError):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    elif status == 503:
        headers["Retry-After"] = str(RETRY_CLOSED_S)
    if status == 400 and _WINDOW.search(message):
        code = "context_length_exceeded"
    param = _parameter(message, body) if status == 400 and body is not None else None
    return Failure(status, message, kind, param, code, headers)


def as_asked(name: str, body: BaseModel) -> str:
    """Return a sampling parameter's name as the request spelled it."""
    spellings = [name, *(alias for alias, canonical in ALIASES.items() if canonical == name)]
    return next((spelling for spelling in (*spellings, "max_completion_tokens") if spelling in body.model_fields_set), name)


def _parameter(message: str, body: BaseModel) -> str | None:
    """Return the parameter that a sentence is about: its first word, else the first of its words that the request gave a value for."""
    words = re.findall(r"\w+", _ROW.sub("", message, count=1))
    fields, given = type(body).model_fields, body.model_fields_set
    # "prompt: the draft is empty" is about the draft.
    parts = [word for word in words[1:4] if word in ("draft", "infill", "format")] if words[0] == "prompt" else []
    for name in (*parts, *_NAMES.get(words[0], ())):
        if name in given:
            return name
    if words[0] in fields:
        return as_asked(words[0], body)
    return next((word for word in words if word in given), None)
