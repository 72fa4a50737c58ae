"""The ASGI app: routes, each a few lines, around one backend."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import starlette.requests
from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from ..backend import AsyncEngine, Finished
from ..errors import LadError
from .answers import CHAT, COMPLETION, EDIT, Shape, whole
from .bodies import AdapterBody, Body, ChatBody, CompletionBody, EditBody, Message, RegexFormat, Request, StreamOptions, TextFormat, refusal
from .edits import infill_of
from .failures import Failure, failure_of
from .gate import Gate
from .metrics import CONTENT_TYPE, render
from .openapi import describe
from .pages import add_pages
from .pattern import pattern_skeleton
from .service import Asked, Service
from .settings import ServerSettings
from .skeleton import ROUNDS
from .stream import EventStream, until_gone
from .structure import schema_skeleton

HttpRequest, ClientDisconnect = starlette.requests.Request, starlette.requests.ClientDisconnect


def build_app(backend: AsyncEngine, settings: ServerSettings | None = None) -> FastAPI:
    """Return an app that serves `backend` and closes it when it ends; mount it, or give it to an ASGI server."""
    service = Service(backend, settings or ServerSettings())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.is_draining = True
        await backend.close()

    app = FastAPI(title="lad-engine", version="1", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url="/openapi.json")
    app.state.service = service
    _add_probes(app, service)
    _add_answers(app, service)
    _add_adapters(app, service)
    if service.settings.has_demo:
        add_pages(app, service)
    app.openapi = describe(app)
    app.add_exception_handler(Failure, _answer_failure)
    app.add_exception_handler(LadError, _answer_error)
    app.add_exception_handler(HTTPException, _answer_http)
    app.add_middleware(Gate, service=service)
    if service.settings.cors_origins:
        origins = list(service.settings.cors_origins)
        # Around the gate, so that a page can read why it was refused. Any header: OpenAI's client for pages names its platform in some of
        # its own, and none of ours means more than the key.
        app.add_middleware(
            CORSMiddleware, allow_origins=origins, allow_methods=["GET", "POST"], allow_headers=["*"], expose_headers=["retry-after"]
        )
    return app


def _add_probes(app: FastAPI, service: Service) -> None:
    @app.get("/health")
    async def health() -> dict[str, str]:
        """The process runs."""
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> Response:
        """New requests are taken."""
        is_ready = service.is_ready
        return JSONResponse({"status": "ready" if is_ready else "draining"}, 200 if is_ready else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Counters for Prometheus."""
        return Response(render(service.backend.stats(), service.counts, service.is_ready), media_type=CONTENT_TYPE)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The engine's own model, and every adapter as a model."""
        return {"object": "list", "data": [_model(service, name, adapter) for name, adapter in service.models().items()]}

    @app.get("/v1/models/{model:path}")
    async def model(model: str) -> dict[str, Any]:
        """One model."""
        return _model(service, model, service.adapter_of(model))


def _add_answers(app: FastAPI, service: Service) -> None:
    @app.post("/v1/chat/completions")
    async def chat(request: HttpRequest) -> Response:
        """Answer a conversation."""
        body = await _read(request, ChatBody)
        prompt = {"messages": tuple(_turn(message) for message in body.messages), "draft": body.draft, "infill": body.infill}
        if _is_formed(body):
            return await _answer_formed(request, service, CHAT, body, prompt)
        return await _answer(request, service, CHAT, body, prompt, bool(body.logprobs))

    @app.post("/v1/completions")
    async def completions(request: HttpRequest) -> Response:
        """Continue a text as it stands."""
        body = await _read(request, CompletionBody)
        prompt = {"text": body.prompt, "draft": body.draft, "format": "raw"}
        if _is_formed(body):
            return await _answer_formed(request, service, COMPLETION, body, prompt)
        return await _answer(request, service, COMPLETION, body, prompt, body.logprobs is not None)

    @app.post("/v1/edits")
    async def edits(request: HttpRequest) -> Response:
        """Write spans of a text anew; the rest stays as it is."""
        body = await _read(request, EditBody)
        prompt = {"text": body.instruction, "infill": infill_of(body, service.backend.engine.codec), "format": body.format}
        return await _answer(request, service, EDIT, body, prompt, False)


def _add_adapters(app: FastAPI, service: Service) -> None:
    @app.post("/v1/adapters")
    async def load(request: HttpRequest) -> dict[str, Any]:
        """Load an adapter from below the adapter folder, or replace the one of this name."""
        body = await _read(request, AdapterBody)
        path = service.adapter_path(body.path)
        if body.name == service.own_name:
            raise Failure(400, f"name is {body.name!r}, which is the base's own name, expected another. Rename it.", param="name")
        return await _managed(
            service.backend.load_adapter(body.name, path), lambda status: {"name": status.name, "version": status.version}, body
        )

    @app.delete("/v1/adapters/{name}")
    async def unload(name: str) -> dict[str, Any]:
        """Take an adapter away from new requests."""
        if service.settings.adapter_folder is None:
            raise Failure(403, "adapters: changing them is off. Start the server with --adapter-folder.", "permission_error")
        if name not in {status.name for status in service.backend.list_adapters()}:
            raise Failure(404, f"name is {name!r}, expected a loaded adapter. /v1/models lists them.", param="name", code="model_not_found")
        return await _managed(service.backend.unload_adapter(name), lambda _: {"name": name, "deleted": True})


async def _managed(change: Any, shown: Callable[[Any], dict[str, Any]], body: AdapterBody | None = None) -> dict[str, Any]:
    try:
        return shown(await change)
    except LadError as error:
        raise failure_of(error, body) from error


async def _read(request: HttpRequest, kind: type[Body]) -> Any:
    """Return the body as `kind`; a Failure that names the parameter where it is not one."""
    try:
        raw = await request.body()
    except ClientDisconnect as error:
        request.app.state.service.counts.disconnects += 1
        request.scope["state"]["fields"]["end"] = "disconnect"
        raise Failure(499, "request: the client left before its body was whole.", "server_error", code="cancelled") from error
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        message, name = refusal(error, kind)
        raise Failure(400, message, param=name) from error


async def _answer(
    request: HttpRequest, service: Service, shape: Shape, body: Request, prompt: Mapping[str, Any], wants_logprobs: bool
) -> Response:
    """Submit a request and answer it, whole or as a stream; a client that leaves cancels it."""
    state = request.scope["state"]
    options = body.stream_options or StreamOptions()
    if body.stream_options is not None and not body.stream:
        raise Failure(
            400, "stream_options is given without stream, expected stream: true. Set it or leave the options out.", param="stream_options"
        )
    wants = ("steps" if options.steps else "text") if body.stream else "result"
    asked = service.submit(body, prompt, wants, _client(request, body), _id(request))
    if body.stream:
        state["fields"].update(model=asked.model, prompt_tokens=asked.handle.prompt_tokens)
        return EventStream(shape, asked, service, options, wants_logprobs)
    done = await _result(request, service, asked)
    return JSONResponse(whole(shape, asked, done, service.backend.engine, wants_logprobs))


async def _result(request: HttpRequest, service: Service, asked: Asked) -> Finished:
    """Wait for the end of a request, and cancel it when its client leaves."""
    state = request.scope["state"]
    state["fields"].update(model=asked.model, prompt_tokens=asked.handle.prompt_tokens)
    gone = asyncio.create_task(until_gone(request.receive))
    result = asyncio.create_task(asked.handle.result())
    try:
        await asyncio.wait((gone, result), return_when=asyncio.FIRST_COMPLETED)
        if not result.done():
            service.counts.disconnects += 1
            state["fields"]["end"] = "disconnect"
            raise Failure(499, "request: the client left before its answer.", "server_error", code="cancelled")
        done = result.result()
    except LadError as error:
        raise failure_of(error) from error
    finally:
        asked.handle.cancel()
        for task in (gone, result):
            task.cancel()
            with suppress(asyncio.CancelledError, LadError):
                await task
    service.finished(done)
    state["fields"].update(nfe=done.result.nfe, steps=done.result.steps, adapter=done.result.adapter)
    return done


def _is_formed(body: ChatBody | CompletionBody) -> bool:
    return body.response_format is not None and not isinstance(body.response_format, TextFormat)


async def _answer_formed(
    request: HttpRequest, service: Service, shape: Shape, body: ChatBody | CompletionBody, prompt: Mapping[str, Any]
) -> Response:
    """Answer in the request's format, in rounds; 422 where gaps do not hold after the last."""
    form = body.response_format
    for name in ("stream", "stream_options", "draft", "infill", "logprobs", "stop", "context_window"):
        value = getattr(body, name, None)
        if value is not None and value is not False:
            what = f"{name} is given beside response_format {form.type}"
            raise Failure(400, f"{what}, expected one of them. Leave one out.", param=name)
    engine, adapter = service.backend.engine, service.adapter_of(body.model)
    try:
        params = service.params(body, adapter)
    except LadError as error:
        raise failure_of(error, body) from error
    skeleton = pattern_skeleton(form.pattern) if isinstance(form, RegexFormat) else schema_skeleton(form.json_schema.schema_)
    sizes, nfe = skeleton.sizes(engine.codec, params.max_new_tokens), 0
    for number in range(ROUNDS):
        asked = service.submit(
            body, {**prompt, "infill": skeleton.infill(sizes)}, "result", _client(request, body), _id(request, number), number, True
        )
        done = await _result(request, service, asked)
        nfe += done.result.nfe
        skeleton.read(done.result.text)
        if not skeleton.open:
            answer = whole(shape, asked, done, engine, wants_logprobs=False)
            answer["choices"][0] = shape.choice(skeleton.document(), "stop", None)
            answer["lad"].update(nfe=nfe, rounds=number + 1)
            return JSONResponse(answer)
    places = ", ".join(gap.place for gap in skeleton.open)
    message = f"response_format: after {ROUNDS} rounds ({nfe} passes) nothing that holds stands at {places}. Give more steps or tokens."
    raise Failure(422, message, "server_error", "response_format", "format_not_met")


def _client(request: HttpRequest, body: Request) -> str:
    return f"{request.scope['state']['client']} {body.user or ''}"


def _id(request: HttpRequest, number: int = 0) -> str:
    return request.scope["state"]["request_id"] + (f"-{number}" if number else "")


def _turn(message: Message) -> dict[str, str]:
    content = message.content if isinstance(message.content, str) else "".join(part.text for part in message.content)
    return {"role": "system" if message.role == "developer" else message.role, "content": content}


def _model(service: Service, name: str, adapter: str | None) -> dict[str, Any]:
    engine = service.backend.engine
    facts = engine.list_adapters().get(adapter) if adapter is not None else engine.adapter_facts
    version = next((one.version for one in service.backend.list_adapters() if one.name == adapter), None)
    return {
        "id": name,
        "object": "model",
        "created": service.started,
        "owned_by": "lad-engine",
        "lad": {
            "base": engine.facts.name,
            "adapter": facts.name if facts is not None else None,
            "adapter_version": version,
            "decodes_as": engine.family,
            "max_positions": engine.facts.max_positions,
            "profile": _profile(service, adapter),
        },
    }


def _profile(service: Service, adapter: str | None) -> str | None:
    """Return the profile of requests that name none; None where such a request is refused, or the adapter is not here."""
    try:
        return service.backend.engine.sampling(adapter=adapter).profile
    except LadError:
        return None


async def _answer_error(_: HttpRequest, error: LadError) -> Response:
    failure = failure_of(error)
    return JSONResponse(failure.body, failure.status, failure.headers)


async def _answer_failure(_: HttpRequest, failure: Failure) -> Response:
    return JSONResponse(failure.body, failure.status, failure.headers)


async def _answer_http(request: HttpRequest, error: HTTPException) -> Response:
    message = f"{request.method} {request.url.path[:200]}: {error.detail}. /openapi.json lists what there is."
    return JSONResponse(Failure(error.status_code, message).body, error.status_code, error.headers)
