"""The OpenAPI document: FastAPI's own for the routes, with the bodies that the endpoints read by themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from .bodies import AdapterBody, ChatBody, CompletionBody, EditBody

ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
BODIES = {
    "/v1/chat/completions": ChatBody,
    "/v1/completions": CompletionBody,
    "/v1/edits": EditBody,
    "/v1/adapters": AdapterBody,
}
REFUSALS = {
    "400": "A parameter is unknown or out of range; param names it.",
    "401": "There is no valid API key.",
    "403": "Not allowed by the operator.",
    "404": "There is no such model or path.",
    "405": "The method is not one of this path.",
    "413": "The body is too large.",
    "415": "The body is not application/json.",
    "422": "Nothing of the response_format came out.",
    "429": "The queue is full; Retry-After says when to ask again.",
    "499": "The client left.",
    "500": "The request failed; others went on.",
    "503": "The server is shutting down, or the device's memory is exhausted.",
    "504": "The deadline passed.",
}


def describe(app: FastAPI) -> Callable[[], dict[str, Any]]:
    """Return the function that makes the document of `app`, once."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    return document


def _document(app: FastAPI) -> dict[str, Any]:
    out = get_openapi(title=app.title, version=app.version, routes=app.routes)
    schemas = out.setdefault("components", {}).setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    schemas["Error"] = ERROR
    for path, operations in out["paths"].items():
        for method, operation in operations.items():
            operation["responses"].pop("422", None)
            answer = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
            for status, text in REFUSALS.items():
                operation["responses"].setdefault(status, {"description": text, "content": answer})
            if method == "post":
                kind = BODIES[path]
                schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
                schemas.update(schema.pop("$defs", {}))
                schemas[kind.__name__] = schema
                content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{kind.__name__}"}}}
                operation["requestBody"] = {"required": True, "content": content}
    return out
