"""Two replicas on this machine: the same answers as one engine's, adapters that come and go, and one replica killed while it computes."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import httpx
import pytest
from live_server import HELLO, data_of, load_engine, wait_until

from lad_engine import serve as command
from lad_engine.config import EngineConfig
from lad_engine.errors import ConfigError
from lad_engine.server.ray_app import APPLICATION, Plan, application, deploy
from lad_engine.server.scale import Scale
from lad_engine.server.settings import ServerSettings
from lad_engine.text.prompts import Prompt

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra scale (ray[serve])")
CHAT, KEY = "/v1/chat/completions", "0123456789abcdef"
NAMES = ("first", "second", "third")
LONG = {"max_tokens": 200, "steps": 250, "early_stop": False}


@pytest.fixture(scope="module", autouse=True)
def unobserved():
    """Ray would report its use to its makers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        yield


@pytest.fixture(scope="module")
def alone(places):
    """A function that gives the answer of an engine of its own, with everything resident."""
    base, folder = places
    engine = load_engine(base, {name: folder / f"{name}.safetensors" for name in NAMES})
    known = {}

    def answer(body):
        name = body.get("model")
        key = (name, body["max_tokens"], body["steps"], body.get("seed", 0))
        if key not in known:
            asked = {"max_new_tokens": body["max_tokens"], "steps": body["steps"], "seed": body.get("seed", 0)}
            params = engine.sampling(None, **asked, early_stop=body.get("early_stop", True))
            known[key] = engine.generate([Prompt(messages=tuple(body["messages"]))], params, adapters=name)[0].text
        return known[key]

    return answer


@pytest.fixture(scope="module")
def plan(places):
    base, folder = places
    return Plan(
        str(base),
        None,
        {name: str(folder / f"{name}.safetensors") for name in NAMES},
        EngineConfig(device="cpu", dtype="float32", threads=1),
        settings=ServerSettings(api_keys=(KEY,), max_body_kib=64),
        scale=Scale(min_replicas=2, max_replicas=2, adapters_per_replica=1, cpus_per_replica=0.5),
    )


@pytest.fixture(scope="module")
def scaled(plan):
    """A client of two replicas, each with room for one of three adapters."""
    import ray
    from ray import serve

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
    ray.init(address="local", num_cpus=2, object_store_memory=100 * 2**20, **quiet)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        deploy(application(plan))
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120, headers={"authorization": f"Bearer {KEY}"}) as client:
            yield client
    finally:
        serve.shutdown()
        ray.shutdown()


def samples(client: httpx.Client, name: str) -> dict[str, float]:
    """Return a metric's sum by replica."""
    sums: dict[str, float] = {}
    for line in client.get("/metrics").text.splitlines():
        if line.startswith(name + "{"):
            replica = line.split('replica="')[1].split('"')[0]
            sums[replica] = sums.get(replica, 0) + float(line.rsplit(" ", 1)[1])
    return sums


def text_of(chunks: list[dict]) -> str:
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])


@needs_ray
def test_two_replicas_answer_as_one_server_does(scaled, alone):
    body = {"messages": HELLO, "max_tokens": 8, "steps": 4, "model": "first"}
    answer = scaled.post(CHAT, json=body, headers={"x-request-id": "mine"})
    assert answer.json()["choices"][0]["message"]["content"] == alone(body)
    assert answer.json()["id"] == "chatcmpl-mine" and answer.headers.get_list("x-request-id") == ["mine"]
    chunks = list(data_of(scaled.post(CHAT, json={**body, "stream": True, "stream_options": {"steps": True}}).iter_lines()))
    assert text_of(chunks) == alone(body) and [chunk["step"]["step"] for chunk in chunks if "step" in chunk] == [0, 1, 2, 3]
    assert [model["id"] for model in scaled.get("/v1/models").json()["data"]] == ["tiny-base", *NAMES]
    assert scaled.post(CHAT, json={**body, "model": "nobody"}).status_code == 404
    assert scaled.post(CHAT, json={**body, "temprature": 1}).json()["error"]["param"] == "temprature"
    assert scaled.post(CHAT, json=body, headers={"authorization": "Bearer no"}).status_code == 401
    assert scaled.post(CHAT, json={**body, "user": "a" * 70000}).status_code == 413


@needs_ray
def test_adapters_take_turns_in_a_replica_that_holds_one(scaled, alone):
    bodies = [{"messages": HELLO, "max_tokens": 6, "steps": 3, "model": NAMES[index % 3], "seed": index} for index in range(18)]
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda body: scaled.post(CHAT, json=body), bodies))
    assert [answer.status_code for answer in answers] == [200] * 18
    assert [answer.json()["choices"][0]["message"]["content"] for answer in answers] == [alone(body) for body in bodies]
    assert {answer.json()["lad"]["adapter"] for answer in answers} == set(NAMES)
    ready = samples(scaled, "lad_ready")
    assert len(ready) == 2 and set(ready.values()) == {1.0}


@needs_ray
def test_a_client_that_leaves_frees_its_replica(scaled):
    before = sum(samples(scaled, "lad_requests_cancelled_total").values())
    body = {"messages": HELLO, "model": "first", **LONG, "stream": True, "stream_options": {"steps": True}}
    with scaled.stream("POST", CHAT, json=body) as response:
        next(chunk for chunk in data_of(response.iter_lines()) if "step" in chunk)
    wait_until(lambda: sum(samples(scaled, "lad_requests_cancelled_total").values()) == before + 1)


@needs_ray
def test_a_killed_replica_loses_no_request(scaled, alone):
    import ray

    bodies = [{"messages": HELLO, "model": NAMES[index % 2], "seed": index, **LONG} for index in range(6)]
    answers: dict[int, str] = {}
    steps: dict[int, list[int]] = {0: [], 1: []}
    is_under_way = threading.Event()

    def ask(index: int) -> None:
        if index not in steps:
            answers[index] = scaled.post(CHAT, json=bodies[index]).json()["choices"][0]["message"]["content"]
            return
        chunks = []
        with scaled.stream("POST", CHAT, json={**bodies[index], "stream": True, "stream_options": {"steps": True}}) as response:
            for chunk in data_of(response.iter_lines()):
                chunks.append(chunk)
                if "step" in chunk:
                    steps[index].append(chunk["step"]["step"])
                if all(len(seen) > 20 for seen in steps.values()):
                    is_under_way.set()
        answers[index] = text_of(chunks)

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(bodies))]
    for thread in threads:
        thread.start()
    assert is_under_way.wait(60)
    running = samples(scaled, "lad_requests_running")
    busiest = max(running, key=running.get)
    names = [name["name"] for name in ray.util.list_named_actors(all_namespaces=True)]
    ray.kill(ray.get_actor(next(name for name in names if name.endswith(f"{APPLICATION}#replicas#{busiest}")), namespace="serve"))
    for thread in threads:
        thread.join(120)
    assert answers == {index: alone(body) for index, body in enumerate(bodies)}
    assert all(seen == list(range(LONG["steps"])) for seen in steps.values()), "no step twice, none missing"
    assert samples(scaled, "lad_front_lost_total")["front"] >= 1


@needs_ray
def test_an_engine_that_cannot_be_loaded_is_one_sentence(scaled, plan, tmp_path):
    import dataclasses

    with pytest.raises(ConfigError, match=r"nothing-here.*expected"):
        deploy(application(dataclasses.replace(plan, model=str(tmp_path / "nothing-here"))))


@needs_ray
def test_the_command_adds_a_replica_while_requests_wait_and_drains(places):
    base, folder = places
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["--ray", "--port", str(port), "--model", str(base), "--adapter", f"first={folder / 'first.safetensors'}", "--threads", "1"]
    words += ["--max-replicas", "2", "--requests-per-replica", "1", "--cpus-per-replica", "0.5", "--max-running", "2"]
    process = subprocess.Popen([sys.executable, "-m", "lad_engine.serve", *words], stderr=subprocess.PIPE, text=True)
    lines: list[str] = []
    reading = threading.Thread(target=lambda: lines.extend(process.stderr), daemon=True)
    reading.start()
    try:
        wait_until(lambda: any('"listening"' in line for line in lines) or process.poll() is not None, 180)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=180) as client:
            asked = threading.Event()

            def ask(_: int) -> int:
                return 0 if asked.is_set() else client.post(CHAT, json={"messages": HELLO, "model": "first", **LONG}).status_code

            with ThreadPoolExecutor(6) as pool:
                statuses = pool.map(ask, range(2000))
                wait_until(lambda: len(samples(client, "lad_ready")) == 2, 240)
                asked.set()
                assert set(statuses) <= {0, 200}
            body = {"messages": HELLO, "model": "first", **LONG, "stream": True, "stream_options": {"steps": True}}
            with client.stream("POST", CHAT, json=body) as response:
                chunks = data_of(response.iter_lines())
                next(chunk for chunk in chunks if "step" in chunk)
                process.send_signal(signal.SIGTERM)
                assert list(chunks)[-1]["lad"]["steps"] == LONG["steps"], "what ran was answered to its end"
        assert process.wait(60) == 0
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        reading.join(10)


def test_without_ray_it_says_what_to_install(monkeypatch, capsys, places):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert command.main(["--ray", "--model", str(places[0]), "--adapter", "none"]) == 2
    assert capsys.readouterr().err == (
        "error: serve: the package ray is missing, expected the extra scale. Run pip install 'lad-engine[scale]'.\n"
    )


def test_wrong_settings_of_replicas_are_one_sentence(capsys, tmp_path):
    for arguments in (
        ["--max-replicas", "2"],
        ["--ray", "--max-replicas", "0"],
        ["--ray", "--min-replicas", "3"],
        ["--ray", "--gpus-per-replica", "-1"],
        ["--ray", "--adapter-folder", str(tmp_path)],
    ):
        assert command.main(arguments) == 2
        said = capsys.readouterr().err.strip()
        assert said.startswith("error: ") and "\n" not in said and "expected" in said, said


def test_an_application_for_serves_own_commands_asks_for_keys(tmp_path):
    with pytest.raises(ConfigError, match="no API key"):
        command.application({"model": str(tmp_path)})
    with pytest.raises(ConfigError, match="http_options"):
        command.application({"port": 9000})
    with pytest.raises(ConfigError, match="unrecognized"):
        command.application({"modle": "x"})
