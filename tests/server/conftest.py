"""One server for all tests that do not need settings of their own."""

from __future__ import annotations

import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")
pytest.importorskip("uvicorn", reason="needs the extra serve")
pytest.importorskip("httpx", reason="needs the extra test")

from live_server import live_server, load_engine

from tiny_adapter import write_adapter
from tiny_checkpoint import make_tiny


@pytest.fixture(scope="session")
def places(tmp_path_factory):
    """(base, folder of adapters first.safetensors, second.safetensors, third.safetensors)."""
    base, folder = make_tiny(tmp_path_factory.mktemp("served") / "tiny-base"), tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("first", "second", "third"), start=7):
        write_adapter(base, folder / f"{name}.safetensors", seed)
    return base, folder


@pytest.fixture(scope="session")
def engine_of(places):
    """A function that loads an engine with the first two adapters: a backend owns its engine, so every server needs its own."""
    base, folder = places
    return lambda: load_engine(base, {name: folder / f"{name}.safetensors" for name in ("first", "second")})


@pytest.fixture(scope="session")
def served(places, engine_of):
    with live_server(engine_of(), has_demo=True, adapter_folder=places[1], max_steps=400, max_body_kib=64) as client:
        yield client
