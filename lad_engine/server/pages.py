"""The demo: two pages of ours, and what they must know about the engine to draw their controls."""

from __future__ import annotations

import dataclasses
from importlib import resources
from typing import Any

from fastapi import FastAPI
from fastapi.responses import Response

from ..config import CHOICES, LEAST, MAY_BE_NONE, RANGES, SamplingParams
from ..families import READS
from ..profiles import load_profile, profile_meanings
from ..terminal.arguments import SAMPLING_HELP
from .failures import Failure
from .service import Service

FILES = {"style.css": "text/css", "page.js": "text/javascript", "canvas.js": "text/javascript", "stream.js": "text/javascript"}


def add_pages(app: FastAPI, service: Service) -> None:
    """Serve the pages and their files; nothing is fetched from anywhere else."""

    @app.get("/", include_in_schema=False)
    async def simple() -> Response:
        return _file("simple.html", "text/html")

    @app.get("/advanced", include_in_schema=False)
    async def advanced() -> Response:
        return _file("advanced.html", "text/html")

    @app.get("/page/{name}", include_in_schema=False)
    async def file(name: str) -> Response:
        if name not in FILES:
            raise Failure(404, f"there is no page file {name[:80]!r}.")
        return _file(name, FILES[name])

    @app.get("/page-facts", include_in_schema=False)
    async def facts() -> dict[str, Any]:
        return page_facts(service)


def page_facts(service: Service) -> dict[str, Any]:
    """Return the models, the profiles this engine's family can use, and every setting it reads, with its range and one sentence."""
    engine = service.backend.engine
    reads = set(READS[engine.family])
    profiles = {}
    for name, meaning in profile_meanings().items():
        settings = load_profile(name)
        if set(settings) <= reads:
            profiles[name] = {"meaning": meaning, "settings": settings}
    own = engine.sampling()
    values = {field.name: getattr(own, field.name) for field in dataclasses.fields(own)}
    settings = [
        _setting(field, values[field.name])
        for field in dataclasses.fields(SamplingParams)
        if field.name in reads and field.name != "profile"
    ]
    return {
        "models": list(service.models()),
        "family": engine.family,
        "window": engine.facts.max_positions,
        "max_steps": service.settings.max_steps,
        "profile": own.profile,
        "profiles": profiles,
        "settings": settings,
    }


def _setting(field: dataclasses.Field[Any], value: Any) -> dict[str, Any]:
    low, high = RANGES.get(field.name, (LEAST.get(field.name), None))
    kind = (
        "choice" if field.name in CHOICES else {"bool": "bool", "int": "int", "float": "float"}.get(str(field.type).split(" ")[0], "list")
    )
    return {
        "name": field.name,
        "kind": kind,
        "help": SAMPLING_HELP[field.name],
        "choices": CHOICES.get(field.name),
        "low": low,
        "high": high,
        "may_be_empty": field.name in MAY_BE_NONE,
        "value": value,
        "fallback": field.default,
    }


def _file(name: str, media_type: str) -> Response:
    text = (resources.files("lad_engine") / "webui" / name).read_text(encoding="utf-8")
    return Response(text, media_type=media_type, headers={"Cache-Control": "no-cache"})
