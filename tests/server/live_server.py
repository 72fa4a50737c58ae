"""A server on a free port, in a thread or in a process of its own, with the tiny checkpoint and two adapters."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from lad_engine.backend import AsyncEngine, Limits
from lad_engine.engine import Engine
from lad_engine.serve import DrainingServer
from lad_engine.server.app import build_app
from lad_engine.server.settings import ServerSettings

HELLO = [{"role": "user", "content": "the user is in"}]


def load_engine(base: Path, adapters: dict[str, Path]) -> Engine:
    return Engine.load(base, adapters=adapters, device="cpu", dtype="float32", threads=1)


@contextmanager
def live_server(engine: Engine, limits: Limits | None = None, **settings) -> Iterator[httpx.Client]:
    """Serve `engine`; yields a client of the server, whose `base_url` says where it is."""
    import uvicorn

    app = build_app(AsyncEngine(engine, limits), ServerSettings(port=0, **settings))
    server = DrainingServer(uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, timeout_graceful_shutdown=5))
    # Signals belong to the main thread.
    server.install_signal_handlers = lambda: None
    thread = threading.Thread(target=_serve, args=(server,), daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        yield client
    server.should_exit = True
    thread.join(20)
    assert not thread.is_alive(), "the server did not end"


def _serve(server: DrainingServer) -> None:
    import asyncio
    from contextlib import nullcontext

    server.capture_signals = nullcontext
    asyncio.run(server.serve())


@contextmanager
def server_process(*arguments: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """Run the command; yields the process and its address, and kills it if it is still there at the end."""
    command = [sys.executable, "-m", "lad_engine.serve", "--port", "0", "--threads", "1", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        for line in process.stderr:
            if line.startswith("{") and json.loads(line)["message"] == "listening":
                yield process, f"http://127.0.0.1:{json.loads(line)['port']}"
                break
        else:
            raise AssertionError(f"the server ended with {process.wait()}")
    finally:
        if process.poll() is None:
            process.kill()
        process.stderr.close()
        process.wait()


def wait_until(holds, timeout_s: float = 15.0) -> None:
    """Wait until `holds()`; AssertionError where it takes too long."""
    end = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def metric(client: httpx.Client, name: str) -> float:
    """Return the sum of a metric over its labels."""
    values = [line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines() if not line.startswith("#")]
    return sum(float(value) for key, value in values if key.split("{")[0] == name)


def data_of(lines: Iterator[str]) -> Iterator[dict]:
    """Yield the JSON of server-sent events up to [DONE]."""
    for line in lines:
        if line == "data: [DONE]":
            return
        if line:
            yield json.loads(line.removeprefix("data: "))
