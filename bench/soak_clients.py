"""The clients of the soak: what they ask, what they may be answered, and what they keep count of."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter, defaultdict
from typing import Any

import httpx

CHAT, EDITS, COMPLETIONS, ADAPTERS = "/v1/chat/completions", "/v1/edits", "/v1/completions", "/v1/adapters"
# A request that was right: it may find the queue full, or its adapter just taken away.
ANSWERED = (200, 400, 404, 429)
# A request that takes longer is stuck: the longest takes a second alone.
STUCK_S = 60.0
WORDS = ("the", "user", "is", "in", "a", "room", "and", "one", "two", "three", "hello", "again")
LENGTHS, STEPS = (4, 8, 16, 24, 32, 48), (2, 4, 8, 12)
# Rules of every kind; what a request does not name comes from the adapter's profile.
RULES: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 0.8, "top_k": 20},
    {"remasking": "transfer", "block_length": 8},
    {"remasking": "none"},
    {"temperature": 1.2, "top_p": 0.9},
    {"cfg_scale": 1.0},
    {"remasking": "confidence", "noise_schedule": "linear"},
)
LONG = {"max_tokens": 100, "steps": 200, "early_stop": False, "remasking": "random"}
# A body, the status it must get, and how it is sent.
RUBBISH: tuple[tuple[bytes, int, dict[str, str]], ...] = (
    (b"", 400, {}),
    (b"{", 400, {}),
    (b"[" * 20000, 400, {}),
    (b"\xff\xfe\x00", 400, {}),
    (b'{"messages": 5}', 400, {}),
    (b'{"messages": [{"role": "user", "content": "a"}], "temprature": 1}', 400, {}),
    (b'{"messages": [{"role": "user", "content": "a"}], "steps": 0}', 400, {}),
    (b'{"messages": [{"role": "user", "content": "a"}], "max_tokens": 1000000}', 400, {}),
    (b'{"messages": [{"role": "user", "content": "a"}], "steps": 4, "tokens_per_step": 2, "max_tokens": 20}', 400, {}),
    (b'{"messages": [{"role": "user", "content": "a"}], "model": "nobody"}', 404, {}),
    (b"{}", 415, {"content-type": "text/plain"}),
    (b"{}", 403, {"host": "elsewhere.example.com"}),
)


def chat_body(index: int, models: tuple[str, ...]) -> dict[str, Any]:
    """Return request `index`, always the same one: lengths, models, seeds and rules are mixed."""
    draw = random.Random(index)
    content = " ".join(draw.choices(WORDS, k=draw.randint(1, 20)))
    body = {"model": models[index % len(models)], "messages": [{"role": "user", "content": content}], "seed": draw.randrange(2**62)}
    length, steps = draw.choice(LENGTHS), draw.choice(STEPS)
    rule = draw.choice(RULES)
    if "block_length" in rule:
        steps = max(steps, -(-length // rule["block_length"]))
    return {**body, "max_tokens": length, "steps": steps, "early_stop": bool(index % 2), **rule}


class Tally:
    """What all clients saw. Requests are sent through `ask` and `stream`, which count them.

    statuses: of responses whose head arrived; given_up: requests that were left before their end; complete: answers read to their end;
    answers: (request, model, adapter version) -> the texts that came; surprises: what no client should see.
    """

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client
        self.sent = self.given_up = self.stuck = self.complete = self.tokens = 0
        self.statuses: Counter[int] = Counter()
        self.actions: Counter[str] = Counter()
        self.surprises: Counter[str] = Counter()
        self.answers: dict[tuple[int, str, int | None], set[str]] = defaultdict(set)

    async def ask(self, method: str, path: str, expected: tuple[int, ...], **options: Any) -> httpx.Response | None:
        """Send a request and wait for its answer; None where it is stuck."""
        self.sent += 1
        try:
            response = await asyncio.wait_for(self.client.request(method, path, **options), STUCK_S)
        except TimeoutError:
            self._give_up(stuck=True)
            return None
        self._count(response, f"{method} {path}", expected)
        return response

    async def stream(self, path: str, body: dict[str, Any], most_events: int | None = None) -> list[dict[str, Any]] | None:
        """Read a stream's events to their end, or leave after `most_events`; None where it was refused, left or stuck."""
        self.sent += 1
        try:
            return await asyncio.wait_for(self._stream(path, body, most_events), STUCK_S)
        except TimeoutError:
            self._give_up(stuck=True)
            return None

    async def _stream(self, path: str, body: dict[str, Any], most_events: int | None) -> list[dict[str, Any]] | None:
        events: list[dict[str, Any]] = []
        async with self.client.stream("POST", path, json={**body, "stream": True}) as response:
            self._count(response, f"stream {path}", ANSWERED)
            if response.status_code != 200:
                await response.aread()
                return None
            async for line in response.aiter_lines():
                if line == "data: [DONE]":
                    return events
                if line:
                    events.append(json.loads(line.removeprefix("data: ")))
                if most_events is not None and len(events) >= most_events:
                    break
            else:
                self.surprises["a stream ended without [DONE]"] += 1
        self._give_up()
        return None

    async def hang_up(self, body: dict[str, Any], after_s: float) -> None:
        """Ask for a whole answer and leave before it comes."""
        self.sent += 1
        try:
            response = await asyncio.wait_for(self.client.post(CHAT, json=body), after_s)
        except TimeoutError:
            self._give_up()
            return
        self._count(response, "hang up", ANSWERED)
        self.complete += response.status_code == 200

    def _give_up(self, stuck: bool = False) -> None:
        self.given_up += 1
        self.stuck += stuck

    def _count(self, response: httpx.Response, action: str, expected: tuple[int, ...]) -> None:
        self.statuses[response.status_code] += 1
        if response.status_code not in expected:
            self.surprises[f"{action}: {response.status_code}"] += 1

    def keep(self, index: int, model: str, lad: dict[str, Any], text: str, tokens: int | None) -> None:
        """Note an answer."""
        self.complete += 1
        self.tokens += tokens or 0
        self.answers[index, model, lad["adapter_version"]].add(text)


class Visitor:
    """One client after another of every kind, until it is told to stop."""

    def __init__(self, tally: Tally, models: tuple[str, ...], address: str, seed: int, distinct: int = 60) -> None:
        self.tally, self.models, self.distinct = tally, models, distinct
        self.host, self.port = address.removeprefix("http://").split(":")
        self.draw = random.Random(seed)
        # (how often, what)
        self._kinds = (
            (30, self.answer),
            (18, self.streamed),
            (8, self.edit),
            (6, self.completion),
            (8, self.cancelled),
            (8, self.left),
            (8, self.rubbish),
            (4, self.oversized),
            (4, self.half_sent),
            (6, self.looked),
        )

    async def run(self, is_over: asyncio.Event) -> None:
        """Do one thing after another."""
        weights, kinds = zip(*self._kinds, strict=True)
        while not is_over.is_set():
            (kind,) = self.draw.choices(kinds, weights)
            self.tally.actions[kind.__name__] += 1
            refused = self.tally.statuses[429]
            try:
                await kind()
            except httpx.HTTPError as error:
                self.tally.surprises[f"{kind.__name__}: {type(error).__name__} {error}"] += 1
            if self.tally.statuses[429] > refused:
                await asyncio.sleep(0.3)

    def _chosen(self) -> tuple[int, dict[str, Any]]:
        index = self.draw.randrange(self.distinct)
        return index, chat_body(index, self.models)

    async def answer(self) -> None:
        index, body = self._chosen()
        response = await self.tally.ask("POST", CHAT, ANSWERED, json=body)
        if response is not None and response.status_code == 200:
            said = response.json()
            text = said["choices"][0]["message"]["content"]
            self.tally.keep(index, body["model"], said["lad"], text, said["usage"]["completion_tokens"])

    async def streamed(self) -> None:
        index, body = self._chosen()
        options = {"steps": self.draw.choice((False, True, "canvas")), "include_usage": True}
        events = await self.tally.stream(CHAT, {**body, "stream_options": options})
        if events is None:
            return
        if "error" in events[-1]:
            # Its adapter was taken away while it waited.
            if events[-1]["error"]["code"] != "adapter":
                self.tally.surprises[f"a stream failed: {events[-1]['error']['message']}"] += 1
            return
        lad = next(event["lad"] for event in events if "lad" in event)
        text = "".join(choice["delta"].get("content") or "" for event in events for choice in event["choices"])
        self.tally.keep(index, body["model"], lad, text, events[-1]["usage"]["completion_tokens"])

    async def edit(self) -> None:
        text = " ".join(self.draw.choices(WORDS, k=8))
        body = {"text": text, "spans": [{"start": 0, "end": len(text) // 3}], "instruction": "mend it", "steps": 4}
        response = await self.tally.ask("POST", EDITS, ANSWERED, json={**body, "model": self.draw.choice(self.models)})
        self.tally.complete += response is not None and response.status_code == 200

    async def completion(self) -> None:
        body = {"prompt": " ".join(self.draw.choices(WORDS, k=5)), "max_tokens": 8, "steps": 4, "model": self.draw.choice(self.models)}
        response = await self.tally.ask("POST", COMPLETIONS, ANSWERED, json=body)
        self.tally.complete += response is not None and response.status_code == 200

    async def cancelled(self) -> None:
        body = {**self._chosen()[1], **LONG, "stream_options": {"steps": True}}
        await self.tally.stream(CHAT, body, most_events=self.draw.randint(1, 6))

    async def left(self) -> None:
        await self.tally.hang_up({**self._chosen()[1], **LONG}, self.draw.random() * 0.3)

    async def rubbish(self) -> None:
        content, status, headers = self.draw.choice(RUBBISH)
        await self.tally.ask("POST", CHAT, (status,), content=content, headers={"content-type": "application/json", **headers})

    async def oversized(self) -> None:
        # Either its header says so, or only its end does.
        async def pieces() -> Any:
            for _ in range(12):
                yield b"a" * 8192

        content = b"a" * 80_000 if self.draw.random() < 0.5 else pieces()
        await self.tally.ask("POST", CHAT, (413,), content=content, headers={"content-type": "application/json"})

    async def half_sent(self) -> None:
        """Announce a body, send half of it, and close."""
        self.tally.sent += 1
        self.tally.given_up += 1
        _, writer = await asyncio.open_connection(self.host, int(self.port))
        head = f"POST {CHAT} HTTP/1.1\r\nhost: {self.host}\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n"
        writer.write(head.encode() + b'{"messages": [')
        await writer.drain()
        await asyncio.sleep(self.draw.random() * 0.05)
        writer.close()

    async def looked(self) -> None:
        path, status = self.draw.choice((("/health", 200), ("/ready", 200), ("/v1/models", 200), ("/metrics", 200), ("/nothing", 404)))
        await self.tally.ask("GET", path, (status,))


class Keeper:
    """Who changes the adapters: replaces one between two files, takes it away and brings it back, and asks for what is not there."""

    def __init__(self, tally: Tally, name: str, files: tuple[str, str], seed: int) -> None:
        self.tally, self.name, self.files = tally, name, files
        self.draw = random.Random(seed)
        # version -> the file whose weights it has
        self.versions: dict[int, str] = {1: files[0]}
        self.changes = 0

    async def run(self, is_over: asyncio.Event, every_s: float) -> None:
        """Change something every so often, and leave the adapter loaded."""
        while not is_over.is_set():
            kind = self.draw.random()
            if kind < 0.1:
                await self.tally.ask("POST", ADAPTERS, (400,), json={"name": self.name, "path": "missing.safetensors"})
            elif kind < 0.2:
                await self.tally.ask("DELETE", f"{ADAPTERS}/nobody", (404,))
            elif kind < 0.4:
                await self.tally.ask("DELETE", f"{ADAPTERS}/{self.name}", (200, 404))
                await self.load()
            else:
                await self.load()
            await asyncio.sleep(every_s * self.draw.random() * 2)
        while not await self.load():
            await asyncio.sleep(0.2)

    async def load(self) -> bool:
        """Load one of the files; False where every slot is still in use by requests that run."""
        file = self.draw.choice(self.files)
        response = await self.tally.ask("POST", ADAPTERS, (200, 400), json={"name": self.name, "path": file})
        if response is None:
            return False
        if response.status_code == 200:
            self.versions[response.json()["version"]] = file
            self.changes += 1
            return True
        if "slots are taken" not in response.text:
            self.tally.surprises[f"an adapter was not loaded: {response.text}"] += 1
        return False


def differing(tally: Tally, keeper: Keeper) -> list[str]:
    """Return the requests that got more than one answer from the same weights."""
    texts: dict[tuple[int, str, str], set[str]] = defaultdict(set)
    for (index, model, version), seen in tally.answers.items():
        weights = keeper.versions.get(version, "?") if model == keeper.name else ""
        texts[index, model, weights] |= seen
    return [f"request {index} to {model} {weights}" for (index, model, weights), seen in texts.items() if len(seen) > 1]
