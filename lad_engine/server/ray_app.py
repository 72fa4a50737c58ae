"""Several replicas of the server on Ray Serve: a front that listens, replicas that compute, more of them while more requests wait.

The routes, the limits and the refusals are the plain server's: a replica runs its app, and the front its gate (see `relay`). An adapter is
a multiplexed model: Ray sends its requests where it is resident, and a replica that holds as many as it may gives the least used one up.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import re
import signal
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from ..backend import AsyncEngine, Limits
from ..config import EngineConfig
from ..engine import Engine
from ..errors import ClosedError, ConfigError, LadError, OverloadError
from .app import build_app
from .failures import failure_of
from .gate import JsonLines, Receive, Scope, Send, send_failure
from .relay import App, Front, Message, ReplicaLostError, answer_of
from .scale import Scale
from .settings import ServerSettings

log = logging.getLogger("lad_engine.server")
APPLICATION, REPLICAS, FRONT = "lad", "replicas", "front"
# How long /metrics waits for a replica that does not answer.
METRICS_S = 5.0
# When a full queue is worth asking again; nobody knows how long Ray's is.
RETRY_FULL_S = 1.0
_REASON = re.compile(r"lad_engine\.errors\.\w+: (.+)")


@dataclass(frozen=True)
class Plan:
    """What every replica is built from; paths must lead to the same files on every machine. adapters: by name, instead of `adapter`."""

    model: str | None
    adapter: str | None
    adapters: Mapping[str, str] = field(default_factory=dict)
    config: EngineConfig = field(default_factory=EngineConfig)
    limits: Limits = field(default_factory=Limits)
    settings: ServerSettings = field(default_factory=ServerSettings)
    scale: Scale = field(default_factory=Scale)
    log_level: str = "info"

    def __post_init__(self) -> None:
        if self.settings.adapter_folder is not None:
            raise ConfigError(
                "adapter_folder is given for replicas, expected none: each would load for itself. Name every adapter with --adapter."
            )

    @property
    def held(self) -> int:
        """How many of the adapters a replica holds."""
        return min(self.scale.adapters_per_replica or len(self.adapters), len(self.adapters))


class Resident:
    """An adapter in a replica, given up when Ray's multiplexer says so and the last request that uses it has ended."""

    def __init__(self, name: str, backend: AsyncEngine) -> None:
        self._name, self._backend = name, backend
        self._users, self._is_idle = 0, asyncio.Event()
        self._is_idle.set()
        # The multiplexer awaits model.__del__; were it the class's, the garbage collector would call it once more.
        self.__del__ = self._leave

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """Keep it for a request."""
        self._users += 1
        self._is_idle.clear()
        try:
            yield
        finally:
            self._users -= 1
            if not self._users:
                self._is_idle.set()

    async def _leave(self) -> None:
        await self._is_idle.wait()
        await self._backend.unload_adapter(self._name)


class Replica:
    """One engine behind the plain server's routes; the front calls `answer`."""

    async def __init__(self, plan: Plan) -> None:
        serve = _ray_serve()
        _log_json(plan.log_level)
        first = dict(islice(plan.adapters.items(), plan.held))
        load = functools.partial(Engine.load, plan.model, adapter=plan.adapter, adapters=first or None, config=plan.config)
        backend = AsyncEngine(await asyncio.to_thread(load), plan.limits)
        self._backend, self._name = backend, serve.get_replica_context().replica_id.unique_id
        self._app = build_app(backend, plan.settings)
        self._app.state.service.catalog = tuple(plan.adapters)

        async def resident(name: str) -> Resident:
            if name not in {status.name for status in backend.list_adapters()}:
                await backend.load_adapter(name, plan.adapters[name])
            return Resident(name, backend)

        self._resident = serve.multiplexed(max_num_models_per_replica=max(1, plan.held))(resident)
        for name in first:
            await self._resident(name)
        # Ray awaits it after the last request; not the class's for the same reason as above.
        self.__del__ = backend.close

    async def answer(self, adapter: str, scope: dict[str, Any], body: bytes) -> AsyncIterator[Message]:
        """Yield the messages of one request's answer, computed with `adapter` ("": what the request says needs none of those named)."""
        async with contextlib.aclosing(answer_of(functools.partial(self._served, adapter), scope, body)) as messages:
            async for message in messages:
                yield message

    async def metrics(self) -> tuple[str, str]:
        """Return this replica's name and its metrics."""
        scope = {"type": "http", "method": "GET", "path": "/metrics", "query_string": b"", "headers": self._own_headers()}
        text = b"".join([message.get("body", b"") async for message in answer_of(self._app, scope, b"")])
        return self._name, text.decode()

    async def check_health(self) -> None:
        """Tell Ray to replace a replica whose backend takes no more requests."""
        if not self._backend.stats().is_accepting:
            raise RuntimeError("the backend is closed")

    async def _served(self, adapter: str, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            resident = await self._resident(adapter) if adapter else None
        except LadError as error:
            await send_failure(failure_of(error), send)
            return
        with resident.used() if resident is not None else contextlib.nullcontext():
            await self._app(scope, receive, send)

    def _own_headers(self) -> list[tuple[bytes, bytes]]:
        keys = self._app.state.service.settings.api_keys
        return [(b"host", b"localhost"), *([(b"authorization", b"Bearer " + keys[0].encode())] if keys else [])]


class Listener:
    """Ray's ingress: it makes the front that is the application."""

    def __init__(self, replicas: Any, plan: Plan) -> None:
        _log_json(plan.log_level)
        self._replicas, self._plan = replicas, plan

    def __serve_build_asgi_app__(self) -> App:
        """Return the app that Ray serves."""
        front = Front(self._call, self._collect, self._plan.settings, self._plan.adapters, self._plan.scale.tries)

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            async def send_unnamed(message: Message) -> None:
                if message["type"] == "http.response.start":
                    # Ray's proxy writes the request's id by itself.
                    message["headers"] = [pair for pair in message["headers"] if pair[0] != b"x-request-id"]
                await send(message)

            await front(scope, receive, send_unnamed)

        return app

    async def _call(self, adapter: str, scope: dict[str, Any], body: bytes) -> AsyncIterator[Message]:
        from ray.exceptions import RayActorError, WorkerCrashedError
        from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError

        answer = self._replicas.options(stream=True, multiplexed_model_id=adapter).answer.remote(adapter, scope, body)
        has_ended = False
        try:
            async for message in answer:
                yield message
            has_ended = True
        except (RayActorError, WorkerCrashedError, ReplicaUnavailableError) as error:
            has_ended = True
            raise ReplicaLostError(f"{type(error).__name__}: {' '.join(str(error).split())}") from error
        except BackPressureError as error:
            raise OverloadError(f"queue: it is full, expected fewer requests. Ask again in {RETRY_FULL_S:.0f} s.", RETRY_FULL_S) from error
        except DeploymentUnavailableError as error:
            raise ClosedError("server: no replica could be started, expected one. Its log says why.") from error
        finally:
            if not has_ended:
                answer.cancel()

    async def _collect(self) -> dict[str, str]:
        answers = await self._replicas.broadcast("metrics").results_async(timeout_s=METRICS_S, return_exceptions=True)
        return dict(answer for answer in answers if isinstance(answer, tuple))


def application(plan: Plan) -> Any:
    """Return the Ray Serve application of a plan; ConfigError where Ray is not installed."""
    serve, scale, limits = _ray_serve(), plan.scale, plan.limits
    most = limits.max_running * scale.max_replicas + limits.max_queue
    replicas = serve.deployment(
        name=REPLICAS,
        autoscaling_config={
            "min_replicas": scale.min_replicas,
            "max_replicas": scale.max_replicas,
            "target_ongoing_requests": scale.requests_per_replica or limits.max_rows,
        },
        # What a replica does not compute at once waits where any replica, also a new one, can take it.
        max_ongoing_requests=limits.max_running,
        max_queued_requests=limits.max_queue,
        graceful_shutdown_timeout_s=limits.drain_s,
        # An engine that cannot be loaded once cannot be loaded twice.
        max_constructor_retry_count=1,
        ray_actor_options={"num_cpus": scale.cpus_per_replica, "num_gpus": scale.gpus_per_replica},
    )(Replica)
    front = serve.deployment(
        name=FRONT,
        num_replicas=scale.fronts,
        # It holds every connection; refusing is the replicas' queue's work.
        max_ongoing_requests=2 * most,
        graceful_shutdown_timeout_s=limits.drain_s,
        ray_actor_options={"num_cpus": 0},
    )(serve.ingress()(Listener))
    return front.bind(replicas.bind(plan), plan)


def run(plan: Plan) -> int:
    """Start the application in the cluster Ray finds, or in one of this process, and take it away at SIGTERM or SIGINT, drained.

    Raises:
        ConfigError: Ray is not installed, Serve runs already and listens elsewhere, or a replica could not be started.
    """
    app, serve, ended = application(plan), _ray_serve(), threading.Event()
    _log_json(plan.log_level)
    where = {"host": plan.settings.host, "port": plan.settings.port}
    if serve.status().proxies:
        raise ConfigError(
            "serve: Ray Serve runs already in this cluster and listens where it was told, expected a cluster without it. "
            "Deploy with `serve run lad_engine.serve:application`."
        )
    kept = {}
    try:
        serve.start(http_options=where, logging_config={"enable_access_log": False})
        deploy(app)
        # Until here a signal ends at once what has not begun.
        kept = {name: signal.signal(name, lambda *_: ended.set()) for name in (signal.SIGINT, signal.SIGTERM)}
        log.info("listening", extra={"fields": where})
        ended.wait()
        log.info("draining")
        serve.delete(APPLICATION)
    except KeyboardInterrupt:
        log.info("stopped")
    finally:
        serve.shutdown()
        for name, handler in kept.items():
            signal.signal(name, handler)
    return 0


def deploy(app: Any) -> None:
    """Give an application to Ray Serve and wait until it answers; ConfigError with a replica's own sentence where it does not come up."""
    serve = _ray_serve()
    try:
        serve.run(app, name=APPLICATION, route_prefix="/")
    except RuntimeError as error:
        status = serve.status().applications.get(APPLICATION)
        said = [str(error), *(one.message for one in (status.deployments.values() if status is not None else ()))]
        found = [reason for text in said for reason in _REASON.findall(text)]
        what = " ".join(" ".join(said).split())
        raise ConfigError(found[-1] if found else f"serve: Ray could not start it (...{what[-400:]}).") from error


def _ray_serve() -> Any:
    try:
        from ray import serve
    except ImportError as error:
        raise ConfigError(
            f"serve: the package {error.name} is missing, expected the extra scale. Run pip install 'lad-engine[scale]'."
        ) from error
    return serve


def _log_json(level: str) -> None:
    """Write our log lines to stderr, which Ray keeps per process and shows to who started it."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    ours = logging.getLogger("lad_engine")
    ours.handlers[:] = [handler]
    ours.propagate = False
    ours.setLevel(level.upper())
