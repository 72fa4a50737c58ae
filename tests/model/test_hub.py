"""A model and an adapter fetched by hub id, from a server here that answers as the hub does."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tiny_adapter import write_adapter
from tiny_checkpoint import make_tiny

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PICKLE = "pytorch_model.bin"


class Hub(ThreadingHTTPServer):
    """Repositories by id, each a folder; `asked` has the files that were fetched."""

    def __init__(self, repositories: dict[str, Path]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories, self.asked = repositories, set()


class Handler(BaseHTTPRequestHandler):
    """/api/models/ID/revision/NAME, /api/models/ID/tree/COMMIT and /ID/resolve/COMMIT/FILE."""

    server: Hub

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = self.path.partition("?")[0].strip("/").split("/")
        is_api = parts[:2] == ["api", "models"]
        parts = parts[2:] if is_api else parts
        folder, kind, rest = self.server.repositories.get("/".join(parts[:2])), parts[2] if len(parts) > 2 else "", parts[4:]
        if folder is None:
            return self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        if is_api and kind == "revision":
            siblings = [{"rfilename": str(path.relative_to(folder))} for path in files]
            return self.send(200, json.dumps({"id": "/".join(parts[:2]), "sha": COMMIT, "siblings": siblings}).encode(), {})
        if is_api and kind == "tree":
            tree = [
                {"type": "file", "path": str(path.relative_to(folder)), "size": path.stat().st_size, "oid": _digest(path)} for path in files
            ]
            return self.send(200, json.dumps(tree).encode(), {})
        path = folder.joinpath(*rest)
        if kind == "resolve" and path in files:
            self.server.asked.add(path.name)
            return self.send(200, path.read_bytes(), {"ETag": f'"{_digest(path)}"', "X-Repo-Commit": COMMIT})
        return self.send(404, b"{}", {"X-Error-Code": "EntryNotFound"})

    def send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    base = make_tiny(tmp_path / "base")
    (base / PICKLE).write_bytes(b"not to be fetched")
    (tmp_path / "adapter").mkdir()
    write_adapter(base, tmp_path / "adapter" / "adapter.safetensors")
    server = Hub({"owner/base": base, "owner/adapter": tmp_path / "adapter"})
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def generate(hub: Hub, home: Path, *arguments: str, **changed: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    env = {**kept, "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", **changed}
    command = [sys.executable, "-m", "lad_engine.generate", "the user is in", "--max-new-tokens", "4", "--steps", "2", *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)


def test_a_model_and_an_adapter_by_hub_id_are_fetched_once_and_then_need_no_network(hub: Hub, tmp_path: Path) -> None:
    both = ("--model", "owner/base", "--adapter", "owner/adapter")
    first = generate(hub, tmp_path / "home", *both)
    assert first.returncode == 0, first.stderr
    assert "model.safetensors" in hub.asked and PICKLE not in hub.asked
    here = generate(hub, tmp_path / "home", "--model", str(tmp_path / "base"), "--adapter", str(tmp_path / "adapter"))
    offline = generate(hub, tmp_path / "home", *both, HF_HUB_OFFLINE="1", HF_ENDPOINT="http://127.0.0.1:9")
    assert first.stdout == here.stdout == offline.stdout, offline.stderr


def test_an_id_that_the_hub_does_not_have_is_one_sentence(hub: Hub, tmp_path: Path) -> None:
    found = generate(hub, tmp_path / "home", "--model", "owner/none", "--adapter", "owner/adapter")
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr == "error: owner/none: no such folder here and no such model on the hub. Check the name, or run `hf auth login`.\n"
