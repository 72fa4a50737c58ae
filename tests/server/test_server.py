"""What the server refuses and how, edits, adapters by path, metrics that add up, and the pages' files."""

from __future__ import annotations

import json
import socket
import threading

import httpx
import pytest
from live_server import HELLO, data_of, live_server, load_engine, metric, wait_until

from lad_engine.backend import Limits
from lad_engine.errors import ConfigError
from lad_engine.server.service import Service
from lad_engine.server.settings import ServerSettings, read_keys
from lad_engine.server.skeleton import ROUNDS, Skeleton

CHAT = "/v1/chat/completions"
LONG = {"messages": HELLO, "max_tokens": 400, "steps": 400, "early_stop": False}


def error_of(response: httpx.Response, status: int) -> dict:
    assert response.status_code == status, response.text
    return response.json()["error"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'"text"', b"\xff\xfe", b'{"messages": 5}', b"[" * 50000])
def test_a_malformed_body_is_refused(served, body):
    assert error_of(served.post(CHAT, content=body, headers={"content-type": "application/json"}), 400)["message"]


def test_a_body_beyond_the_limit_is_refused_with_it(served):
    big = {"messages": [{"role": "user", "content": "a" * 70000}]}
    assert "at most 64 KiB" in error_of(served.post(CHAT, json=big), 413)["message"]
    chunks = (b"a" * 10000 for _ in range(10))
    assert "at most 64 KiB" in error_of(served.post(CHAT, content=chunks, headers={"content-type": "application/json"}), 413)["message"]


def test_a_client_that_leaves_within_its_body_is_no_error_of_the_server(served):
    gone = 'lad_http_responses_total{method="POST",route="/v1/chat/completions",status="499"}'
    before, left = served.get("/metrics").text.count(gone), metric(served, "lad_http_disconnects_total")
    with socket.create_connection((served.base_url.host, served.base_url.port)) as half:
        head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n"
        half.sendall(head.encode() + b'{"messages": [')
    wait_until(lambda: metric(served, "lad_http_disconnects_total") == left + 1)
    wait_until(lambda: served.get("/metrics").text.count(gone) >= max(before, 1))
    assert 'status="500"' not in served.get("/metrics").text


def test_only_json_and_known_hosts_get_in(served):
    assert error_of(served.post(CHAT, content=b"{}", headers={"content-type": "text/plain"}), 415)
    assert error_of(served.get("/v1/models", headers={"host": "evil.example.com"}), 403)
    assert served.get("/v1/models", headers={"host": "localhost:1"}).status_code == 200
    preflight = served.options(CHAT, headers={"origin": "http://example.com", "access-control-request-method": "POST"})
    assert "access-control-allow-origin" not in preflight.headers


def test_a_page_of_an_allowed_origin_may_call_with_the_headers_of_openais_client(engine_of):
    with live_server(engine_of(), cors_origins=("https://app.example.com",)) as client:
        asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type,x-stainless-os"}
        preflight = client.options(CHAT, headers={"origin": "https://app.example.com", **asked})
        assert preflight.status_code == 200 and preflight.headers["access-control-allow-origin"] == "https://app.example.com"
        answer = client.post(CHAT, json={"messages": HELLO, "steps": 1}, headers={"origin": "https://app.example.com"})
        assert answer.headers["access-control-allow-origin"] == "https://app.example.com"
        refused = client.post(CHAT, content=b"{", headers={"origin": "https://app.example.com", "content-type": "text/plain"})
        assert refused.status_code == 415 and refused.headers["access-control-allow-origin"] == "https://app.example.com"
        foreign = client.options(CHAT, headers={"origin": "https://evil.example.com", **asked})
        assert foreign.status_code == 400 and "access-control-allow-origin" not in foreign.headers


def test_a_context_window_holds_prompt_and_answer(served):
    answer = served.post(CHAT, json={"messages": HELLO, "context_window": 40, "steps": 2}).json()
    assert answer["usage"]["prompt_tokens"] + answer["lad"]["params"]["max_new_tokens"] == 40
    assert error_of(served.post(CHAT, json={"messages": HELLO, "context_window": 4}), 400)["message"].startswith("prompt: it is")
    both = error_of(served.post(CHAT, json={"messages": HELLO, "context_window": 40, "max_tokens": 4}), 400)
    assert both["param"] == "context_window"


def test_a_temperature_draws_from_all_tokens(served):
    body = {"messages": HELLO, "max_tokens": 6, "steps": 2, "temperature": 2.0}
    answers = [served.post(CHAT, json={**body, "seed": seed}).json() for seed in range(4)]
    texts = {answer["choices"][0]["message"]["content"] for answer in answers}
    assert len(texts) > 1
    answer = served.post(CHAT, json={**body, "top_k": 1}).json()
    assert "top_k" not in answer["lad"]["params"], "one candidate was asked for, which is the default"


def test_penalties_are_openais_where_tokens_are_final_and_zero_anywhere(served):
    body = {"messages": HELLO, "max_tokens": 12, "steps": 12, "remasking": "transfer", "eos_treatment": "forbid", "block_length": 1}
    plain, lowered = (served.post(CHAT, json={**body, **more}).json() for more in ({}, {"frequency_penalty": 2, "presence_penalty": 1.5}))
    assert plain["choices"][0]["message"]["content"] != lowered["choices"][0]["message"]["content"]
    renoised = {"messages": HELLO, "max_tokens": 4, "remasking": "random"}
    assert served.post(CHAT, json={**renoised, "frequency_penalty": 0, "presence_penalty": 0.0}).status_code == 200
    assert error_of(served.post(CHAT, json={**renoised, "presence_penalty": 1}), 400)["param"] == "presence_penalty"
    assert error_of(served.post(CHAT, json={**body, "frequency_penalty": 2.5}), 400)["param"] == "frequency_penalty"
    by_profile = {"messages": HELLO, "max_tokens": 4, "steps": 4, "profile": "default"}
    own, off = (served.post(CHAT, json={**by_profile, **more}).json()["lad"]["params"] for more in ({}, {"frequency_penalty": 0}))
    assert own["frequency_penalty"] == 1.0 and off.get("frequency_penalty", 0.0) == 0.0


def test_an_edit_changes_its_spans_alone(served):
    text = "the user is [[here]] in the same room"
    body = {"text": text, "spans": [{"start": 4, "end": 8}, {"start": 33, "end": 37, "positions": 3}], "format": "raw", "steps": 3}
    answer = served.post("/v1/edits", json=body).json()["choices"][0]["text"]
    assert answer.startswith("the ") and " is [[here]] in the same" in answer
    streamed = list(data_of(served.post("/v1/edits", json={**body, "stream": True}).iter_lines()))
    assert "".join(chunk["choices"][0]["text"] for chunk in streamed if chunk["choices"]) == answer
    for wrong in ({"spans": None}, {"spans": [{"start": 9, "end": 3}]}, {"infill": "a [[3]]"}, {"spans": [{"start": 0, "end": 99}]}):
        assert error_of(served.post("/v1/edits", json={**body, **wrong}), 400)["param"] in ("spans", "text")


def test_a_span_may_stand_in_brackets(served):
    body = {"text": "in a [room] there", "spans": [{"start": 6, "end": 10}], "format": "raw", "steps": 3}
    answer = served.post("/v1/edits", json=body).json()["choices"][0]["text"]
    assert answer.startswith("in a [") and answer.endswith("] there")


def test_whole_canvases_hold_what_changes_add_up_to(served):
    body = {"messages": HELLO, "max_tokens": 8, "steps": 6, "early_stop": False, "stream": True, "model": "first"}
    frames = {}
    for form in ("changes", "canvas"):
        sent = data_of(served.post(CHAT, json={**body, "stream_options": {"steps": form}}).iter_lines())
        cells: dict[int, list] = {}
        frames[form] = []
        for chunk in sent:
            if "step" in chunk:
                cells = {**cells, **{cell[0]: cell for cell in chunk["step"]["cells"]}}
                frames[form].append(list(cells.values()))
    assert len(frames["canvas"]) == 6 and frames["changes"] == frames["canvas"]


def test_overload_says_when_to_ask_again(engine_of):
    with live_server(engine_of(), Limits(max_running=1, max_queue=1)) as client:
        with client.stream("POST", CHAT, json={**LONG, "stream": True, "stream_options": {"steps": True}}) as running:
            chunks = data_of(running.iter_lines())
            next(chunks)
            wait_until(lambda: metric(client, "lad_requests_running") == 1)
            waiting = threading.Thread(
                target=lambda: httpx.post(f"{client.base_url}{CHAT}", json={"messages": HELLO, "steps": 1}, timeout=60)
            )
            waiting.start()
            wait_until(lambda: metric(client, "lad_requests_waiting") == 1)
            refused = client.post(CHAT, json={"messages": HELLO})
            assert error_of(refused, 429)["code"] == "overloaded" and int(refused.headers["retry-after"]) >= 1
        waiting.join(30)
        assert metric(client, "lad_requests_refused_total") == 1


def test_adapters_are_loaded_from_the_folder_alone(served, places, tmp_path):
    (tmp_path / "outside.safetensors").write_bytes((places[1] / "third.safetensors").read_bytes())
    (places[1] / "link.safetensors").symlink_to(tmp_path / "outside.safetensors")
    (places[1] / "circle").symlink_to(places[1] / "circle")
    for path in (
        "../outside.safetensors",
        str(tmp_path / "outside.safetensors"),
        "link.safetensors",
        ".",
        "",
        "a\0b",
        "missing.safetensors",
        "a" * 300,
        "circle",
    ):
        assert error_of(served.post("/v1/adapters", json={"name": "late", "path": path}), 400)["param"] == "path"
    done = served.post("/v1/adapters", json={"name": "second", "path": "third.safetensors"}).json()
    assert done == {"name": "second", "version": 2}
    answer = served.post(CHAT, json={"model": "second", "messages": HELLO, "steps": 2}).json()
    assert answer["lad"]["adapter_version"] == 2
    assert served.post("/v1/adapters", json={"name": "second", "path": "second.safetensors"}).json()["version"] == 3
    error_of(served.delete("/v1/adapters/nobody"), 404)


def test_adapters_cannot_be_changed_without_a_folder(engine_of):
    with live_server(engine_of()) as client:
        error_of(client.post("/v1/adapters", json={"name": "x", "path": "y"}), 403)
        error_of(client.delete("/v1/adapters/first"), 403)
        error_of(client.get("/"), 404)


def test_metrics_add_up(served):
    for _ in range(3):
        served.post(CHAT, json={"messages": HELLO, "steps": 2, "max_tokens": 4})
    ends = ("finished", "failed", "cancelled", "expired")
    ended = sum(metric(served, f"lad_requests_{end}_total") for end in ends)
    now = metric(served, "lad_requests_waiting") + metric(served, "lad_requests_running")
    assert metric(served, "lad_requests_submitted_total") == ended + now > 0
    assert metric(served, "lad_tokens_per_pass_count") == metric(served, "lad_requests_finished_total")
    assert served.get("/metrics").headers["content-type"].startswith("text/plain; version=0.0.4")


def test_methods_that_a_client_invents_are_counted_as_one(served):
    for method in ("BREW", "BREW2", "BREW3"):
        error_of(served.request(method, "/health"), 405)
    lines = [line for line in served.get("/metrics").text.splitlines() if 'status="405"' in line]
    assert [line for line in lines if "/health" in line] == ['lad_http_responses_total{method="other",route="/health",status="405"} 3']


def test_a_formed_answer_in_its_rounds_is_not_refused_by_a_shutdown(engine_of, monkeypatch):
    form = {"type": "regex", "pattern": r"\d{4}-(open|closed)"}
    with live_server(engine_of()) as client:
        served_by, rounds = [], []
        params = Service.params
        monkeypatch.setattr(Service, "params", lambda self, *rest: served_by.append(self) or params(self, *rest))

        def read_nothing(self, answer):
            rounds.append(answer)
            served_by[-1].is_draining = True

        monkeypatch.setattr(Skeleton, "read", read_nothing)
        answer = client.post(CHAT, json={"messages": HELLO, "steps": 2, "response_format": form})
        assert error_of(answer, 422)["code"] == "format_not_met" and len(rounds) == ROUNDS
        assert error_of(client.post(CHAT, json={"messages": HELLO}), 503)["code"] == "shutting_down"


def test_every_response_names_its_request(served):
    assert served.get("/health", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    assert served.get("/health", headers={"x-request-id": "two\twords"}).headers["x-request-id"] != "two\twords"
    assert served.get("/ready").json() == {"status": "ready"}


def test_the_pages_come_with_all_their_files(served):
    for page in ("/", "/advanced"):
        text = served.get(page).text
        for file in ("/page/style.css", "/page/page.js"):
            assert file in text and served.get(file).status_code == 200
    facts = served.get("/page-facts").json()
    assert facts["models"][:3] == ["tiny-base", "first", "second"]
    assert {"noise_sharpness", "top_k", "permanent_unmask"} <= {setting["name"] for setting in facts["settings"]}
    assert "reveal" not in {setting["name"] for setting in facts["settings"]}
    assert "default-src 'self'" in served.get("/").headers["content-security-policy"]
    error_of(served.get("/page/../settings.py"), 404)


def test_the_pages_are_for_everybody_and_what_names_adapters_is_for_keys(engine_of):
    key = "0123456789abcdef"
    with live_server(engine_of(), has_demo=True, api_keys=(key,)) as client:
        for place in ("/", "/advanced", "/page/page.js", "/page/style.css"):
            assert client.get(place).status_code == 200
            assert "first" not in client.get(place).text.split() and key not in client.get(place).text
        assert error_of(client.get("/page-facts"), 401)["code"] == "invalid_api_key"
        facts = client.get("/page-facts", headers={"authorization": f"Bearer {key}"}).json()
        assert facts["models"] == ["tiny-base", "first", "second"]


def test_a_model_is_decoded_with_the_profile_beside_its_adapter(places, tmp_path):
    base, folder = places
    tuned = tmp_path / "tuned.safetensors"
    tuned.write_bytes((folder / "first.safetensors").read_bytes())
    tuned.with_suffix(".profile.json").write_text(json.dumps({"settings": {"steps": 3, "remasking": "none"}}))
    with live_server(load_engine(base, {"tuned": tuned}), adapter_folder=tmp_path) as client:
        profiles = [model["lad"]["profile"] for model in client.get("/v1/models").json()["data"]]
        assert profiles == ["paper", "tuned"]
        lad = client.post(CHAT, json={"messages": HELLO, "model": "tuned"}).json()["lad"]
        assert (lad["profile"], lad["params"]["steps"], lad["params"]["remasking"]) == ("tuned", 3, "none")
        assert (
            client.post(CHAT, json={"messages": HELLO, "model": "tuned", "profile": "paper", "steps": 2}).json()["lad"]["profile"]
            == "paper"
        )
        tuned.with_suffix(".profile.json").write_text("{}")
        assert "is no decode profile" in error_of(client.post("/v1/adapters", json={"name": "tuned", "path": tuned.name}), 400)["message"]
        assert client.post(CHAT, json={"messages": HELLO, "model": "tuned"}).json()["lad"]["adapter_version"] == 1


def test_an_edit_names_its_own_parameters(served):
    text = "the user is here"
    for body, param in (
        ({"text": text, "spans": [{"start": 4, "end": 8, "keep": True}], "instruction": "x"}, "spans"),
        ({"infill": "the [[2]]", "instruction": "x", "max_tokens": 9}, "max_tokens"),
        ({"infill": "the [[600]]", "instruction": "x"}, "instruction"),
        ({"infill": "the [[1:many words]]", "instruction": "x"}, "infill"),
        ({"infill": f"the [[{'9' * 5000}]]", "instruction": "x"}, "infill"),
        ({"text": "in C:\\room and here", "spans": [{"start": 6, "end": 10}, {"start": 15, "end": 19}], "format": "raw"}, "spans"),
        ({"text": "a [room] there", "spans": [{"start": 3, "end": 8, "keep": True}], "format": "raw", "noise_start": 0.5}, "spans"),
    ):
        assert error_of(served.post("/v1/edits", json=body), 400)["param"] == param, body


def test_other_machines_need_a_key_and_a_name(tmp_path):
    with pytest.raises(ConfigError, match="no API key"):
        ServerSettings(host="0.0.0.0")
    with pytest.raises(ConfigError, match="no name is allowed"):
        ServerSettings(host="0.0.0.0", is_open=True)
    keys = tmp_path / "keys"
    keys.write_text("# ours\nshort\n")
    with pytest.raises(ConfigError, match="key 1"):
        read_keys(keys)
    keys.write_text("\n")
    with pytest.raises(ConfigError, match="holds none"):
        read_keys(keys)
