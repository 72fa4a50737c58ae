"""python -m lad_engine.serve: an OpenAI-compatible server around one engine, and the demo pages."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import logging
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from .backend import AsyncEngine, Limits
from .config import DRIVERS, DTYPES, PRECISIONS, EngineConfig
from .engine import DEFAULT_ADAPTER, Engine
from .errors import ConfigError
from .server.scale import Scale
from .terminal.arguments import SentenceParser
from .terminal.outcome import FAILURES, refused
from .terminal.progress import LoadProgress, quiet_libraries

try:
    import uvicorn

    from .server import ray_app
    from .server.app import build_app
    from .server.gate import JsonLines
    from .server.settings import ServerSettings, read_keys
except ImportError as error:
    uvicorn, MISSING = None, error.name

log = logging.getLogger("lad_engine.server")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the server until SIGTERM or SIGINT, drain, and return 0; 2 with one sentence on stderr for what the caller got wrong."""
    try:
        arguments = build_parser().parse_args(argv)
        _check_installed()
        if arguments.ray:
            return ray_app.run(_plan(arguments))
        if _scale(arguments) != Scale():
            raise ConfigError("scale: its settings are given without --ray, expected it with them. Add --ray, or leave them out.")
        return run(arguments)
    except FAILURES as error:
        return refused(error)


def application(arguments: Mapping[str, Any]) -> Any:
    """Return what Ray's own commands deploy: `serve run lad_engine.serve:application model=./llama max-replicas=4 without-keys=true ...`.

    Names are the flags without their dashes; a list repeats a flag, true is a flag alone. Serve listens where its own settings say, so
    keys and names are asked for as if other machines reached it.
    """
    words = ["--host=0.0.0.0"]
    for name, given in arguments.items():
        if name in ("host", "port", "ray"):
            raise ConfigError(f"{name} is given to an application, expected it among Serve's own settings (http_options). Leave it out.")
        for value in given if isinstance(given, list) else [given]:
            is_switch = value is True or value == "true"
            words.append(f"--{name.replace('_', '-')}" if is_switch else f"--{name.replace('_', '-')}={value}")
    _check_installed()
    return ray_app.application(_plan(build_parser().parse_args(words)))


def _check_installed() -> None:
    if uvicorn is None:
        raise ConfigError(f"serve: the package {MISSING} is missing, expected the extra serve. Run pip install 'lad-engine[serve]'.")


def run(arguments: argparse.Namespace) -> int:
    """Load the engine, serve it, and return when everything is answered that was asked before the signal."""
    settings, limits, config = _settings(arguments), _limits(arguments), _config(arguments)
    adapter, adapters = _adapters(arguments.adapter or [DEFAULT_ADAPTER])
    _log_json(arguments.log_level)
    with quiet_libraries(), LoadProgress(Console(file=sys.stderr)) as progress:
        engine = Engine.load(arguments.model, adapter=adapter, adapters=adapters or None, config=config, progress=progress.update)
    app = build_app(AsyncEngine(engine, limits), settings)
    server = DrainingServer(
        uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=max(1, round(limits.drain_s)),
            # Who we are talking to is decided by the connection, not by what a client writes in a header.
            proxy_headers=False,
        )
    )
    try:
        asyncio.run(server.serve())
    except KeyboardInterrupt:
        log.info("stopped")
    except SystemExit as error:
        # uvicorn's word for a start that failed; its log line says of what.
        address = f"{settings.host}:{settings.port}"
        raise ConfigError(f"serve: {address} cannot be listened at, expected a free address of this machine. Choose another.") from error
    return 0 if server.started else 2


class DrainingServer(uvicorn.Server if uvicorn is not None else object):
    """uvicorn, which says where it listens, and refuses new requests from the moment it is told to end."""

    def handle_exit(self, sig: int, frame: Any) -> None:
        service = self.config.app.state.service
        if not service.is_draining:
            log.info("draining", extra={"fields": {"signal": signal.Signals(sig).name}})
        service.is_draining = True
        super().handle_exit(sig, frame)

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets=sockets)
        for server in self.servers:
            for socket in server.sockets:
                host, port = socket.getsockname()[:2]
                log.info("listening", extra={"fields": {"host": host, "port": port}})

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        """Take SIGTERM and SIGINT as uvicorn does, and end with 0 after draining: uvicorn would raise the signal once more."""
        kept = {name: signal.signal(name, self.handle_exit) for name in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for name, handler in kept.items():
                signal.signal(name, handler)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = SentenceParser(
        prog="python -m lad_engine.serve", description="Serve a diffusion language model over HTTP.", allow_abbrev=False
    )
    _add_server(parser.add_argument_group("server"))
    _add_fields(parser.add_argument_group("limits"), Limits)
    scale = parser.add_argument_group("scale", "with --ray: replicas on Ray Serve, as many as the requests need")
    scale.add_argument("--ray", action="store_true", help="serve replicas in the cluster Ray finds, or in one on this machine")
    _add_fields(scale, Scale)
    _add_engine(parser.add_argument_group("engine"))
    return parser


def _add_server(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="where to listen (default 127.0.0.1, this machine alone)")
    group.add_argument("--port", type=int, default=8000, metavar="N", help="default 8000; 0 takes a free one and logs it")
    group.add_argument("--api-keys", type=Path, metavar="FILE", help="one key per line; requests bring one as Authorization: Bearer KEY")
    group.add_argument("--without-keys", action="store_true", help="let anyone in, also from other machines")
    group.add_argument("--allowed-host", action="append", default=[], metavar="NAME", help="a name clients use for this server; * for any")
    group.add_argument("--cors-origin", action="append", default=[], metavar="URL", help="a web origin whose pages may call it")
    group.add_argument("--max-body-kib", type=int, default=1024, metavar="N", help="largest request body (default 1024)")
    group.add_argument("--max-steps", type=int, default=1024, metavar="N", help="largest steps of a request (default 1024)")
    group.add_argument("--adapter-folder", type=Path, metavar="DIR", help="let POST /v1/adapters load what lies below it")
    group.add_argument("--served-name", metavar="NAME", help="the model's name (default: the adapter's or the base's)")
    group.add_argument("--demo", action="store_true", help="serve the demo pages at /")
    group.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"), help="default info")


def _add_fields(group: argparse._ArgumentGroup, kind_of: type) -> None:
    for field in dataclasses.fields(kind_of):
        kind = float if "float" in str(field.type) else int
        flag, default = f"--{field.name.replace('_', '-')}", "none" if field.default is None else field.default
        group.add_argument(flag, type=kind, default=field.default, metavar="N", help=f"default {default}")


def _add_engine(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--model", metavar="PATH", help="folder, hub id or GGUF file (default: the embedded one)")
    group.add_argument(
        "--adapter",
        action="append",
        metavar="[NAME=]PATH",
        help="folder, file, default or none; NAME=PATH, several times, to serve each by name",
    )
    group.add_argument("--mask-token", default="MASK", metavar="TEXT", help="mask token where there is no adapter (default MASK)")
    group.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:N")
    group.add_argument("--dtype", default="auto", choices=DTYPES)
    group.add_argument("--precision", default="auto", choices=PRECISIONS)
    group.add_argument("--driver", default="auto", choices=DRIVERS)
    group.add_argument("--ops", default="auto", metavar="SPEC", help="auto, a backend, or attention=reference,renoise=cpu")
    group.add_argument("--threads", type=int, metavar="N", help="CPU threads")
    group.add_argument("--reward-model", metavar="DIR", help="sequence classifier that guides a simplex model")
    group.add_argument("--any-base", action="store_true", help="accept an adapter made for another base of the same shapes")
    group.add_argument(
        "--batch-invariant",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="the same tokens alone and in any batch (default: on for CPU)",
    )


def _settings(arguments: argparse.Namespace) -> ServerSettings:
    return ServerSettings(
        host=arguments.host,
        port=arguments.port,
        api_keys=read_keys(arguments.api_keys) if arguments.api_keys is not None else (),
        is_open=arguments.without_keys,
        allowed_hosts=tuple(arguments.allowed_host),
        cors_origins=tuple(arguments.cors_origin),
        max_body_kib=arguments.max_body_kib,
        max_steps=arguments.max_steps,
        adapter_folder=arguments.adapter_folder,
        has_demo=arguments.demo,
        served_name=arguments.served_name,
    )


def _scale(arguments: argparse.Namespace) -> Scale:
    return Scale(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(Scale)})


def _limits(arguments: argparse.Namespace) -> Limits:
    return Limits(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(Limits)})


def _plan(arguments: argparse.Namespace) -> Any:
    """Return what replicas are built from; a path that is here is made absolute, because replicas work elsewhere."""
    adapter, adapters = _adapters(arguments.adapter or [DEFAULT_ADAPTER])
    return ray_app.Plan(
        model=_absolute(arguments.model),
        adapter=adapter if adapter == DEFAULT_ADAPTER else _absolute(adapter),
        adapters={name: _absolute(path) for name, path in adapters.items()},
        config=_config(arguments),
        limits=_limits(arguments),
        settings=_settings(arguments),
        scale=_scale(arguments),
        log_level=arguments.log_level,
    )


def _absolute(path: str | None) -> str | None:
    return str(Path(path).resolve()) if path is not None and Path(path).exists() else path


def _config(arguments: argparse.Namespace) -> EngineConfig:
    names = ("device", "dtype", "precision", "driver", "ops", "threads", "mask_token", "reward_model", "any_base", "batch_invariant")
    return EngineConfig(**{name: getattr(arguments, name) for name in names})


def _adapters(given: Sequence[str]) -> tuple[str | None, dict[str, str]]:
    """Return the one merged adapter, or several by name."""
    named = dict(word.split("=", 1) for word in given if "=" in word)
    if not named and len(given) == 1:
        return (None if given[0] == "none" else given[0]), {}
    if len(named) != len(given):
        raise ConfigError(f"adapter is given {len(given)} times, expected once, or each time as another NAME=PATH. Name them.")
    return None, named


def _log_json(level: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("lad_engine").setLevel(level.upper())


if __name__ == "__main__":
    sys.exit(main())
