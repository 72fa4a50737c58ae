"""A real server under clients that also cancel, hang up and send rubbish while adapters change; and a load of which every answer counts.

    python -m bench.soak --minutes 10 [--clients 16] [--seed 0] [--out FILE]
    python -m bench.soak --load 2000 --clients 64 [--compare N] [--out FILE]

The server is a process of its own (`python -m lad_engine.serve`) with a tiny random model and two adapters. The soak says how the server's
memory grew, which requests were stuck, what no client should have seen, and whether /metrics adds up with what clients saw. The load asks
distinct requests of mixed lengths, rules, adapters and seeds, again where the queue is full, and compares every answer with the one the
request gets alone from an Engine. Both may be asked for in one command. Exits 1 where something does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from lad_engine.engine import Engine
from lad_engine.text.prompts import Prompt

from .results import make_result, write_result
from .soak_clients import ADAPTERS, CHAT, Keeper, Tally, Visitor, chat_body, differing

OWN, STEADY, CHANGING = "tiny", "steady", "changing"
MODELS = (OWN, STEADY, CHANGING)
FILES = ("changing.safetensors", "other.safetensors")
# Memory that a long soak may grow by: what is measured before the server is warm says nothing.
MOST_KIB_PER_MIN, WARM_UP, LEAST_MINUTES = 1024.0, 0.25, 3.0
EMPTY_S = 30.0


@dataclass(frozen=True)
class Place:
    """A running server: where it listens, its process, and the folder with its model and adapters."""

    address: str
    process: subprocess.Popen
    folder: Path

    def adapters(self) -> dict[str, Path]:
        """Return the adapters it was started with."""
        return {STEADY: self.folder / "steady.safetensors", CHANGING: self.folder / FILES[0]}


@contextlib.contextmanager
def served(folder: Path, *limits: str) -> Iterator[Place]:
    """Start a server in a process of its own, and end it with SIGTERM; AssertionError where it does not end with 0."""
    base = write_models(folder)
    named = [f"--adapter={name}={folder / file}" for name, file in ((STEADY, "steady.safetensors"), (CHANGING, FILES[0]))]
    command = [sys.executable, "-m", "lad_engine.serve", "--port=0", "--threads=1", "--dtype=float32", f"--model={base}", *named]
    command += [f"--adapter-folder={folder}", "--max-body-kib=64", f"--served-name={OWN}", "--demo", *limits]
    with (folder / "server.log").open("w", encoding="utf-8") as log, subprocess.Popen(command, stderr=log) as process:
        try:
            yield Place(_listening(process, folder / "server.log"), process, folder)
            process.terminate()
            assert process.wait(EMPTY_S) == 0, f"the server ended with {process.returncode}"
        finally:
            if process.poll() is None:
                process.kill()


def write_models(folder: Path) -> Path:
    """Write a tiny base and three adapters; the tests' makers are not installed, so this needs a clone."""
    sys.path.append(str(Path(__file__).parents[1] / "tests"))
    from tiny_adapter import write_adapter
    from tiny_checkpoint import make_tiny

    base = make_tiny(folder / OWN, tie=True)
    for seed, file in enumerate(("steady.safetensors", *FILES), start=1):
        write_adapter(base, folder / file, seed)
    return base


async def soak(place: Place, seconds: float, clients: int, seed: int, every_s: float = 1.0) -> dict[str, Any]:
    """Let clients of all kinds loose for so long; returns the result's row, whose "broken" lists what does not hold."""
    memory: list[tuple[float, float]] = []
    async with _client(place, clients) as client:
        before = await _metrics(client)
        tally, is_over = Tally(client), asyncio.Event()
        keeper = Keeper(tally, CHANGING, FILES, seed)
        visitors = [Visitor(tally, MODELS, place.address, seed * 1000 + number) for number in range(clients)]
        tasks = [asyncio.create_task(visitor.run(is_over)) for visitor in visitors]
        tasks.append(asyncio.create_task(keeper.run(is_over, every_s)))
        started = time.monotonic()
        while (passed := time.monotonic() - started) < seconds and place.process.poll() is None:
            memory.append((passed, resident_kib(place.process.pid)))
            await asyncio.sleep(min(1.0, seconds / 20))
        is_over.set()
        await asyncio.gather(*tasks)
        left = await _until_empty(tally)
        after = await _metrics(client)
    slope = slope_per_min(memory)
    broken = [f"{count} x {what}" for what, count in tally.surprises.items()]
    broken += [f"{what} got more than one answer" for what in differing(tally, keeper)]
    broken += unexplained(tally, _difference(before, after))
    broken += [f"{left:.0f} requests are still there after the clients left"] if left else []
    broken += [f"{tally.stuck} requests were stuck"] if tally.stuck else []
    if seconds >= 60 * LEAST_MINUTES and slope > MOST_KIB_PER_MIN:
        broken.append(f"memory grows by {slope:.0f} KiB a minute, expected at most {MOST_KIB_PER_MIN:.0f}")
    return {
        "kind": "soak",
        "seconds": seconds,
        "clients": clients,
        "requests": tally.sent,
        "actions": dict(tally.actions),
        "statuses": {str(status): count for status, count in sorted(tally.statuses.items())},
        "given_up": tally.given_up,
        "answers": tally.complete,
        "adapter_changes": keeper.changes,
        "server_errors": sum(count for status, count in tally.statuses.items() if status >= 500),
        "stuck": tally.stuck + int(left),
        "rss_kib": [[round(at, 1), kib] for at, kib in memory],
        "rss_kib_per_min": slope,
        "open_files": len(os.listdir(f"/proc/{place.process.pid}/fd")),
        "metrics": _difference(before, after),
        "broken": broken,
    }


async def load(place: Place, count: int, clients: int, compared: int | None = None) -> dict[str, Any]:
    """Ask `count` distinct requests from so many clients at once, and `compared` of them (None: all) alone; returns the result's row."""
    waiting, answers, refused = iter(range(count)), {}, 0

    async def visit(client: httpx.AsyncClient) -> None:
        nonlocal refused
        for index in waiting:
            body = chat_body(index, MODELS)
            while (response := await client.post(CHAT, json=body)).status_code == 429:
                refused += 1
                await asyncio.sleep(float(response.headers["retry-after"]))
            answers[index] = (response.status_code, response.json())

    async with _client(place, clients) as client:
        # A soak before it may have left other weights there.
        (await client.post(ADAPTERS, json={"name": CHANGING, "path": FILES[0]})).raise_for_status()
        before = await _metrics(client)
        started = time.monotonic()
        await asyncio.gather(*(visit(client) for _ in range(clients)))
        seconds = time.monotonic() - started
        metrics = _difference(before, await _metrics(client))
    answered = {index: answer for index, (status, answer) in answers.items() if status == 200}
    broken = [f"request {index}: {status} {answer}" for index, (status, answer) in answers.items() if status != 200]
    different = differing_from_solo(place, answered, compared)
    broken += [f"request {index} is answered otherwise alone" for index in different]
    if metrics["lad_requests_finished_total"] != count or metrics["lad_requests_refused_total"] != refused:
        broken.append(f"/metrics counts {metrics['lad_requests_finished_total']:.0f} answers, expected {count}, and {refused} refusals")
    return {
        "kind": "load",
        "requests": count,
        "clients": clients,
        "seconds": seconds,
        "lost": count - len(answered),
        "refused_and_asked_again": refused,
        "compared": len(answered) if compared is None else min(compared, len(answered)),
        "different": len(different),
        "mean_batch": metrics["lad_row_steps_total"] / max(1.0, metrics["lad_steps_total"]),
        "broken": broken,
    }


def differing_from_solo(place: Place, answered: dict[int, dict[str, Any]], compared: int | None) -> list[int]:
    """Return the requests whose answer (text, end, forward passes, tokens) is another one when an Engine decodes them alone."""
    engine = Engine.load(place.folder / OWN, adapters=place.adapters(), device="cpu", dtype="float32", threads=1)
    chosen = sorted(answered) if compared is None else np.random.default_rng(0).permutation(sorted(answered))[:compared].tolist()
    wrong = []
    for index in chosen:
        body = chat_body(index, MODELS)
        name = None if body["model"] == OWN else body["model"]
        settings = {key: value for key, value in body.items() if key not in ("model", "messages")}
        if "temperature" in settings and "top_k" not in settings:
            # As the server reads it: drawn from all tokens.
            settings["top_k"] = 0
        prompt = Prompt(messages=tuple(body["messages"]))
        (alone,) = engine.generate(prompt, engine.sampling(adapter=name, **settings), adapters=name)
        answer = answered[index]
        lad, text = answer["lad"], answer["choices"][0]["message"]["content"]
        got = (text, lad["finish_reason"], lad["nfe"], answer["usage"]["completion_tokens"], lad["steps"], lad["stopped_early"])
        if got != (alone.text, alone.finish_reason, alone.nfe, round(alone.tpf * alone.nfe), alone.steps, alone.stopped_early):
            wrong.append(index)
    return wrong


def unexplained(tally: Tally, metrics: dict[str, float]) -> list[str]:
    """Return where the server's counters and what clients saw do not go together; what clients left may have ended either way."""
    out = []
    ended = sum(metrics[f"lad_requests_{end}_total"] for end in ("finished", "failed", "cancelled", "expired"))
    if metrics["lad_requests_submitted_total"] != ended:
        out.append(f"{metrics['lad_requests_submitted_total']:.0f} requests were submitted and {ended:.0f} ended")
    by_status = {name.split('"')[-2]: 0.0 for name in metrics if name.startswith("lad_http_responses_total")}
    for name, value in metrics.items():
        if name.startswith("lad_http_responses_total"):
            by_status[name.split('"')[-2]] += value
    for status in sorted({*map(str, tally.statuses), *by_status}):
        seen, counted = tally.statuses[int(status)], by_status.get(status, 0.0)
        # Of a response that nobody waited for only the server knows.
        if not seen <= counted <= seen + tally.given_up:
            out.append(f"{counted:.0f} responses {status} were counted, clients saw {seen} and left {tally.given_up}")
        if int(status) >= 500 and counted:
            out.append(f"{counted:.0f} responses {status} were counted, expected none")
    total = sum(by_status.values())
    if not tally.sent - tally.given_up <= total <= tally.sent:
        out.append(f"{total:.0f} responses were counted, clients sent {tally.sent} requests and left {tally.given_up}")
    for name, seen in (("lad_requests_finished_total", tally.complete), ("lad_requests_refused_total", tally.statuses[429])):
        if not seen <= metrics[name] <= seen + tally.given_up:
            out.append(f"{name} is {metrics[name]:.0f}, clients saw {seen} and left {tally.given_up}")
    if metrics["lad_http_disconnects_total"] > tally.given_up:
        out.append(f"{metrics['lad_http_disconnects_total']:.0f} clients are said to have left, {tally.given_up} did")
    if metrics["lad_tokens_total"] < tally.tokens:
        out.append(f"{metrics['lad_tokens_total']:.0f} tokens were counted, clients saw {tally.tokens}")
    return out


def slope_per_min(memory: list[tuple[float, float]]) -> float:
    """Return the fitted growth of (seconds, KiB) per minute, the warm-up left out."""
    kept = [one for one in memory if one[0] >= WARM_UP * memory[-1][0]]
    if len(kept) < 2:
        return 0.0
    at, kib = np.array(kept).T
    return float(np.polyfit(at / 60, kib, 1)[0])


def resident_kib(pid: int) -> float:
    """Return the resident memory of a process on Linux."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return float(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")))


def _client(place: Place, clients: int) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=clients)
    return httpx.AsyncClient(base_url=place.address, timeout=None, limits=limits)


async def _metrics(client: httpx.AsyncClient) -> dict[str, float]:
    return _read((await client.get("/metrics")).text)


def _read(text: str) -> dict[str, float]:
    lines = text.splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if not line.startswith("#"))}


def _difference(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """Return what was counted between two readings, the first reading itself left out."""
    out = {name: value - before.get(name, 0.0) for name, value in after.items() if not name.endswith("}") or "responses_total" in name}
    own = 'lad_http_responses_total{method="GET",route="/metrics",status="200"}'
    return out | {own: out.get(own, 0.0) - 1}


async def _until_empty(tally: Tally) -> float:
    """Wait until no request waits or runs; returns how many still do after EMPTY_S."""
    end = time.monotonic() + EMPTY_S
    while True:
        response = await tally.ask("GET", "/metrics", (200,))
        metrics = _read(response.text) if response is not None else {}
        left = metrics.get("lad_requests_waiting", math.nan) + metrics.get("lad_requests_running", math.nan)
        if not left or time.monotonic() > end:
            return left
        await asyncio.sleep(0.2)


def _listening(process: subprocess.Popen, log: Path) -> str:
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        for line in log.read_text(encoding="utf-8").splitlines():
            if line.startswith("{") and json.loads(line)["message"] == "listening":
                return f"http://127.0.0.1:{json.loads(line)['port']}"
        time.sleep(0.1)
    raise AssertionError(f"the server did not start: {log.read_text(encoding='utf-8')[-500:]}")


def main() -> None:
    """Run what was asked for, print what does not hold, and one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=0.0, help="how long to soak")
    parser.add_argument("--load", type=int, default=0, metavar="N", help="distinct requests whose answers are all checked")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--compare", type=int, metavar="N", help="compare so many answers of the load with solo runs (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the result there too")
    arguments = parser.parse_args()
    if arguments.minutes <= 0 and arguments.load <= 0:
        parser.error("nothing is asked for: give --minutes, --load, or both.")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        if arguments.load:
            with served(Path(folder)) as place:
                rows.append(asyncio.run(load(place, arguments.load, arguments.clients, arguments.compare)))
                print(f"load: {rows[-1]['requests']} requests, {rows[-1]['lost']} lost, {rows[-1]['different']} of "
                      f"{rows[-1]['compared']} differ from those alone, mean batch {rows[-1]['mean_batch']:.2f}")  # fmt: skip
        if arguments.minutes:
            # Less than the clients ask for at once, so that some are refused.
            tight = (f"--max-running={max(1, arguments.clients // 2)}", f"--max-queue={max(1, arguments.clients // 4)}", "--max-rows=8")
            with served(Path(folder), *tight) as place:
                rows.append(asyncio.run(soak(place, arguments.minutes * 60, arguments.clients, arguments.seed)))
                print(f"soak: {rows[-1]['requests']} requests, {rows[-1]['adapter_changes']} adapter changes, {rows[-1]['stuck']} stuck, "
                      f"{rows[-1]['server_errors']} errors, memory {rows[-1]['rss_kib_per_min']:+.0f} KiB a minute")  # fmt: skip
    for row in rows:
        for sentence in row["broken"]:
            print(f"{row['kind']}: {sentence}")
    counted = "soak: from the first client's first request until no request is left; load: from the first request to the last answer"
    write_result(arguments.out, make_result("soak", counted, rows, seed=arguments.seed))
    sys.exit(any(row["broken"] for row in rows))


if __name__ == "__main__":
    main()
