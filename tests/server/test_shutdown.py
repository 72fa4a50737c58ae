"""The command itself: SIGTERM lets what runs end, refuses what comes, and leaves with 0; wrong arguments are one sentence."""

from __future__ import annotations

import json
import signal
import socket

import httpx
from live_server import HELLO, data_of, server_process

from lad_engine import serve

LONG = {"messages": HELLO, "max_tokens": 64, "steps": 60, "early_stop": False}


def test_sigterm_drains(places):
    base, folder = places
    with server_process("--model", str(base), "--adapter", f"first={folder / 'first.safetensors'}") as (process, address):
        body = {**LONG, "stream": True, "stream_options": {"steps": True}}
        with httpx.stream("POST", f"{address}/v1/chat/completions", json=body, timeout=30) as response:
            chunks = data_of(response.iter_lines())
            next(chunk for chunk in chunks if "step" in chunk)
            process.send_signal(signal.SIGTERM)
            rest = list(chunks)
        assert rest[-1]["lad"]["steps"] == 60, "the running request was answered to its end"
        assert process.wait(20) == 0
        logged = [json.loads(line) for line in process.stderr.read().splitlines() if line.startswith("{")]
        assert "draining" in [line["message"] for line in logged]
        requests = [line for line in logged if line["message"] == "request"]
        assert requests[-1]["status"] == 200 and requests[-1]["nfe"] == 60 and "the user is in" not in json.dumps(logged)


def test_an_address_in_use_is_one_sentence(capsys, places, monkeypatch):
    monkeypatch.setattr(serve, "_log_json", lambda level: None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert serve.main(["--port", port, "--model", str(places[0]), "--adapter", "none", "--threads", "1"]) == 2
    assert f"error: serve: 127.0.0.1:{port} cannot be listened at" in capsys.readouterr().err


def test_wrong_arguments_are_one_sentence(capsys, tmp_path):
    for arguments in (["--port", "70000"], ["--host", "0.0.0.0"], ["--nope"], ["--max-rows", "0"], ["--api-keys", str(tmp_path / "none")]):
        assert serve.main([*arguments, "--model", str(tmp_path)]) == 2
        said = capsys.readouterr().err.strip()
        assert said.startswith("error: ") and "\n" not in said, said
    # What the system refuses is no traceback either: a name of 5,000 letters.
    assert serve.main(["--model", "a" * 5000]) == 2
    assert capsys.readouterr().err.startswith("error: aaaa")
    assert serve.main(["--adapter", "a", "--adapter", "b"]) == 2
    assert "NAME=PATH" in capsys.readouterr().err
