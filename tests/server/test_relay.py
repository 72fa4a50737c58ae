"""What a client sees of replicas that answer, die, answer differently or are full; without Ray, which only carries the messages."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager

import httpx
import pytest
from live_server import HELLO, data_of

from lad_engine.backend import AsyncEngine
from lad_engine.errors import OverloadError
from lad_engine.server.app import build_app
from lad_engine.server.relay import Front, ReplicaLostError, answer_of, merged
from lad_engine.server.settings import ServerSettings

# The plug-in comes with httpx and starlette.
pytestmark = pytest.mark.anyio
CHAT = "/v1/chat/completions"
BODY = {"messages": HELLO, "max_tokens": 6, "steps": 5, "early_stop": False, "model": "first"}
STREAM = {**BODY, "stream": True, "stream_options": {"steps": True}}


class Replicas:
    """Stands for Ray: hands every try to one app, and loses it after as many messages as `deaths` says, one number per try."""

    def __init__(self, app=None) -> None:
        self.app, self.deaths, self.tries, self.changes = app, [], [], lambda message: message

    async def call(self, adapter, scope, body):
        self.tries.append(adapter)
        life = self.deaths.pop(0) if self.deaths else None
        if isinstance(life, Exception):
            raise life
        count = 0
        async for message in answer_of(self.app, scope, body):
            if count == life:
                raise ReplicaLostError("it was killed")
            count += 1
            yield self.changes(message)

    async def collect(self):
        return {
            "one": '# HELP a A.\n# TYPE a gauge\na 1\nb_not{x="y"} 2'.replace("b_not", "a"),
            "two": "# HELP a A.\n# TYPE a gauge\na 3\n",
        }


@pytest.fixture(scope="module")
def anyio_backend():
    return "asyncio"


@pytest.fixture(scope="module")
def engine(engine_of):
    return engine_of()


@asynccontextmanager
async def front_of(engine, **settings):
    """Yields (client of a front, its replicas)."""
    async with AsyncEngine(engine) as backend:
        chosen = ServerSettings(**settings)
        replicas = Replicas(build_app(backend, chosen))
        front = Front(replicas.call, replicas.collect, chosen, ("first", "second"))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(front), base_url="http://127.0.0.1") as client:
            yield client, replicas


def settled(chunk: dict) -> dict:
    """Return a chunk without what two runs may differ in."""
    chunk = json.loads(json.dumps(chunk))
    for place, names in ((chunk, ("created",)), (chunk.get("step", {}), ("elapsed_ms",)), (chunk.get("lad", {}), ("queued_ms", "run_ms"))):
        for name in names:
            place.pop(name, None)
    return chunk


async def test_an_answer_whose_replica_dies_comes_from_another(engine):
    async with front_of(engine) as (client, replicas):
        undisturbed = await client.post(CHAT, json=BODY)
        for deaths in ([0], [1], [1, 0]):
            replicas.deaths, replicas.tries = list(deaths), []
            answer = await client.post(CHAT, json=BODY)
            assert answer.status_code == 200 and replicas.tries == ["first"] * (len(deaths) + 1)
            assert answer.json()["choices"] == undisturbed.json()["choices"]
            assert answer.headers.get_list("content-security-policy") == undisturbed.headers.get_list("content-security-policy")
            assert len(answer.headers.get_list("x-request-id")) == 1
        assert 'lad_front_lost_total{replica="front"} 4' in (await client.get("/metrics")).text


async def test_a_stream_goes_on_behind_what_the_client_has(engine):
    async with front_of(engine) as (client, replicas):
        whole = [settled(chunk) for chunk in data_of((await client.post(CHAT, json=STREAM, headers={"x-request-id": "r"})).iter_lines())]
        assert len(whole) > 6
        for deaths in ([4], [2, 5], [1, 3]):
            replicas.deaths = list(deaths)
            chunks = list(data_of((await client.post(CHAT, json=STREAM, headers={"x-request-id": "r"})).iter_lines()))
            assert [settled(chunk) for chunk in chunks] == whole, "nothing twice, nothing missing"
            assert len({chunk["created"] for chunk in chunks}) == 1


async def test_a_stream_that_would_go_on_differently_ends_with_an_error(engine):
    async with front_of(engine) as (client, replicas):
        replicas.deaths = [4]

        def change(message):
            if len(replicas.tries) > 1 and b'"step":1' in message.get("body", b""):
                message["body"] = message["body"].replace(b'"changed"', b'"Changed"')
            return message

        replicas.changes = change
        chunks = list(data_of((await client.post(CHAT, json=STREAM)).iter_lines()))
        assert chunks[-1]["error"]["code"] == "replica_lost" and "differs" in chunks[-1]["error"]["message"]
        assert [chunk["step"]["step"] for chunk in chunks[:-1] if "step" in chunk] == [0, 1]


async def test_a_request_that_no_replica_survives_fails_with_a_reason(engine):
    async with front_of(engine) as (client, replicas):
        replicas.deaths = [0, 1, 0]
        answer = await client.post(CHAT, json=BODY)
        assert answer.status_code == 503 and answer.json()["error"]["code"] == "replica_lost" and answer.headers["retry-after"]
        replicas.deaths = [3, 3, 3]
        chunks = list(data_of((await client.post(CHAT, json=STREAM)).iter_lines()))
        assert "begun 3 times" in chunks[-1]["error"]["message"]


async def test_a_full_queue_refuses_new_requests_but_keeps_admitted_ones(engine):
    async with front_of(engine) as (client, replicas):
        replicas.deaths = [OverloadError("queue: it is full.", 0.01)]
        refused = await client.post(CHAT, json=BODY)
        assert refused.status_code == 429 and refused.headers["retry-after"] == "1"
        replicas.deaths = [2, OverloadError("queue: it is full.", 0.01), OverloadError("queue: it is full.", 0.01)]
        chunks = list(data_of((await client.post(CHAT, json=STREAM)).iter_lines()))
        assert "error" not in chunks[-1] and chunks[-1]["lad"]["nfe"] == 5


async def test_what_the_gate_refuses_no_replica_sees(engine):
    async with front_of(engine, api_keys=("0123456789abcdef",), max_body_kib=1) as (client, replicas):
        key = {"authorization": "Bearer 0123456789abcdef"}
        assert (await client.post(CHAT, json=BODY)).status_code == 401
        assert (await client.get("/metrics")).status_code == 401
        assert (await client.post(CHAT, json={**BODY, "user": "a" * 2000}, headers=key)).status_code == 413
        assert (await client.post(CHAT, content=b"{}", headers={**key, "content-type": "text/plain"})).status_code == 415
        assert (await client.get("/v1/models", headers={**key, "host": "evil.example.com"})).status_code == 403
        assert (await client.post("/v1/adapters", json={"name": "x", "path": "y"}, headers=key)).json()["error"][
            "type"
        ] == "permission_error"
        assert replicas.tries == []
        assert (await client.post(CHAT, json=BODY, headers=key)).status_code == 200


@pytest.mark.parametrize(
    "body,adapter,status",
    [
        ({"model": "second"}, "second", 200),
        ({}, "", 200),
        ({"model": "tiny-base"}, "", 200),
        ({"model": "nobody"}, "", 404),
        ({"model": 5}, "", 400),
    ],
)
async def test_the_replica_is_asked_for_by_the_adapter(engine, body, adapter, status):
    async with front_of(engine) as (client, replicas):
        answer = await client.post(CHAT, json={"messages": HELLO, "steps": 1, "max_tokens": 2, **body})
        assert (answer.status_code, replicas.tries) == (status, [adapter])
        assert (await client.post(CHAT, content=b"[" * 9000, headers={"content-type": "application/json"})).status_code == 400


async def test_a_client_that_leaves_is_gone_for_the_replica_too(engine):
    async with AsyncEngine(engine) as backend:
        app = build_app(backend)
        body = json.dumps({**STREAM, "max_tokens": 400, "steps": 400}).encode()
        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": CHAT, "query_string": b"", "headers": headers}
        messages = answer_of(app, scope, body)
        async for message in messages:
            if b'"step"' in message.get("body", b""):
                break
        await messages.aclose()
        for _ in range(200):
            if backend.stats().cancelled == 1:
                break
            await asyncio.sleep(0.01)
        assert backend.stats().cancelled == 1 and app.state.service.counts.disconnects == 1


def test_metrics_of_replicas_are_told_apart():
    texts = {"one": '# HELP a A.\n# TYPE a counter\na{x="y"} 1\n# TYPE b gauge\nb 2', "two": "# HELP a A.\n# TYPE a counter\na 3"}
    assert merged(texts).splitlines() == [
        "# HELP a A.",
        "# TYPE a counter",
        'a{replica="one",x="y"} 1',
        'a{replica="two"} 3',
        "# TYPE b gauge",
        'b{replica="one"} 2',
    ]
