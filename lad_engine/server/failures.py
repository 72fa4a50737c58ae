"""From an engine's error to an HTTP status and OpenAI's error object."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from typing import Any

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


def failure_of(error: LadError, names: Collection[str] = ()) -> Failure:
    """Return how an engine's error is answered; names are the parameters it may be about, found as the first word of its sentence."""
    _, status, kind, code = next(row for row in _STATUS if isinstance(error, row[0]))
    message, headers = " ".join(str(error).split()), {}
    if isinstance(error, OverloadError):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    elif status == 503:
        headers["Retry-After"] = str(RETRY_CLOSED_S)
    if status == 400 and _WINDOW.search(message):
        code = "context_length_exceeded"
    word = re.match(r"\w+", message)
    param = word.group() if status == 400 and word and word.group() in names else None
    return Failure(status, message, kind, param, code, headers)
