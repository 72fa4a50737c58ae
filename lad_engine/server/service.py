"""What the endpoints share: model names, a request's parameters, submitting it, and who asked."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..backend import AsyncEngine, Finished, Handle
from ..config import ALIASES, SamplingParams, canonical_names
from ..errors import ClosedError, ConfigError, LadError, RequestError
from ..families import READS
from ..requests import prompt_defaults
from ..text.formats import prompt_ids
from ..text.prompts import Prompt
from .bodies import Request, asked_settings
from .failures import Failure, as_asked, failure_of
from .metrics import Counts
from .settings import ServerSettings

# How a value that did not hold is drawn again.
REDRAWN_TEMPERATURE, REDRAWN_TOP_K = 0.7, 20
# OpenAI's clients send these as 0 to whatever model.
PENALTIES = ("frequency_penalty", "presence_penalty")


@dataclass(frozen=True)
class Asked:
    """A submitted request: its handle, the model's name as the answer gives it, and the parameters it is decoded with."""

    handle: Handle
    model: str
    params: SamplingParams
    created: int


class Service:
    """One backend behind HTTP.

    is_draining: no new request is taken any more, because the process was told to end. catalog: adapters that can be loaded when a
    request asks for them (`ray_app`), beside those that are.
    """

    def __init__(self, backend: AsyncEngine, settings: ServerSettings) -> None:
        self.backend, self.settings = backend, settings
        self.counts = Counts()
        self.started = int(time.time())
        self.is_draining = False
        self.catalog: tuple[str, ...] = ()

    @property
    def is_ready(self) -> bool:
        return not self.is_draining and self.backend.stats().is_accepting

    @property
    def own_name(self) -> str:
        """What the engine without a named adapter is called: as the operator says, else its merged adapter, else its base."""
        engine = self.backend.engine
        return self.settings.served_name or (engine.adapter_facts or engine.facts).name or "base"

    def models(self) -> dict[str, str | None]:
        """Return every model name with the adapter it stands for, None for the engine's own."""
        return {self.own_name: None, **{name: name for name in self.catalog or (status.name for status in self.backend.list_adapters())}}

    def adapter_of(self, model: str | None) -> str | None:
        """Return the adapter a model name stands for; 404 where there is none of this name."""
        models = self.models()
        if model is not None and model not in models:
            message = f"model is {model!r}, expected one of {', '.join(models)}. /v1/models lists them."
            raise Failure(404, message, param="model", code="model_not_found")
        return models[model] if model is not None else None

    def params(self, body: Request, adapter: str | None) -> SamplingParams:
        """Return the profile's parameters with the request's laid over them.

        Who asks for a temperature without top_k wants tokens drawn, so a profile's single candidate gives way to all of them.
        """
        engine = self.backend.engine
        asked = canonical_names(asked_settings(body))
        for name in PENALTIES:
            # Where the family reads it, 0 switches off what the profile says.
            if asked.get(name) == 0 and name not in READS[engine.family]:
                del asked[name]
        params = engine.sampling(body.profile, adapter=adapter, **asked)
        draws = asked.get("temperature", 0) > 0 and "top_k" not in asked and "top_k" in READS[engine.family]
        if draws and params.top_k == 1:
            params = engine.sampling(body.profile, adapter=adapter, **asked, top_k=0)
        if params.steps > self.settings.max_steps:
            message = f"steps is {params.steps}, expected at most {self.settings.max_steps} (this server's limit). Lower it."
            raise Failure(400, message, param=as_asked("steps", body))
        return params

    def submit(
        self,
        body: Request,
        prompt: Mapping[str, Any],
        wants: str,
        client: str,
        request_id: str,
        again: int = 0,
        is_sized: bool = False,
    ) -> Asked:
        """Queue a request, `again` times after its first try; every way in which it can be wrong is raised as a Failure.

        is_sized: the gaps of its infill were made for the answer's length that the request gave.
        """
        if self.is_draining and not again:
            raise failure_of(ClosedError("server: it is shutting down, expected a running one. Ask again."))
        adapter = self.adapter_of(body.model)
        try:
            params, asked = self.params(body, adapter), Prompt(**prompt)
            if asked.infill is not None and not is_sized:
                _check_length(body)
            if again:
                params = self._redrawn(params, again)
            if body.context_window is not None and asked.infill is None:
                params = params.replace(max_new_tokens=self._room(body, asked, adapter))
            handle = self.backend.submit(asked, params, adapter=adapter, wants=wants, client=client, request_id=request_id)
        except LadError as error:
            raise failure_of(error, body) from error
        return Asked(handle, body.model or self.own_name, params, int(time.time()))

    def _redrawn(self, params: SamplingParams, again: int) -> SamplingParams:
        """Return parameters that give another answer than the tries before: another seed, and tokens that are drawn."""
        drawn = {"temperature": max(params.temperature, REDRAWN_TEMPERATURE), "top_k": REDRAWN_TOP_K if params.top_k == 1 else params.top_k}
        reads = READS[self.backend.engine.family]
        return params.replace(seed=(params.seed + again) % 2**63, **{name: value for name, value in drawn.items() if name in reads})

    def _room(self, body: Request, prompt: Prompt, adapter: str | None) -> int:
        """Return the answer positions that a context window leaves beside the prompt."""
        engine = self.backend.engine
        if "max_new_tokens" in canonical_names(asked_settings(body)):
            raise ConfigError("context_window is given beside the answer's length, expected one of them. Leave one out.")
        facts = engine.list_adapters().get(adapter) if adapter is not None else engine.adapter_facts
        front = len(prompt_ids(prompt, engine.codec, facts or prompt_defaults(engine.facts, engine.codec)))
        if front >= body.context_window:
            raise RequestError(f"prompt: it is {front} tokens, expected less than context_window={body.context_window}. Widen it.")
        return body.context_window - front

    def adapter_path(self, path: str) -> Path:
        """Return a path below the adapter folder, links followed; 400 where it leaves it, is not there, or there is no such folder."""
        folder = self.settings.adapter_folder
        if folder is None:
            raise Failure(403, "adapters: loading by path is off. Start the server with --adapter-folder.", "permission_error", "path")
        if "\0" in path:
            raise Failure(400, "path holds a null byte, expected a path below the adapter folder.", param="path")
        try:
            place, root = (folder / path).resolve(), folder.resolve()
            is_below = place.is_relative_to(root) and place != root
            is_there = is_below and place.exists()
        except (OSError, RuntimeError) as error:
            # A name longer than any, or links in a circle, which Python before 3.13 calls a RuntimeError.
            raise Failure(400, f"path is {path!r}, expected one that can be followed. Correct it.", param="path") from error
        if not is_below:
            raise Failure(400, f"path is {path!r}, expected one below the adapter folder. Put the adapter there.", param="path")
        if not is_there:
            raise Failure(400, f"path is {path!r}, expected an adapter that is there. Correct it.", param="path")
        return place

    def finished(self, done: Finished) -> None:
        """Count an answer for the metrics."""
        self.counts.answer(done)


def _check_length(body: Request) -> None:
    """Raise ConfigError where a request says how long an infill is to be, which has a length of its own."""
    names = ("max_new_tokens", *(alias for alias, name in ALIASES.items() if name == "max_new_tokens"), "max_completion_tokens")
    for name in (*names, "context_window"):
        if getattr(body, name) is not None:
            raise ConfigError(f"{name} is given beside an infill, expected one of them: its gaps say how long it is. Leave one out.")
