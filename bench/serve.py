"""What the server costs and what batching brings: clients at once against one at a time, and HTTP against the Python API, in one run.

    python -m bench.serve [--requests 200] [--clients 1 8] [--no-batch-invariant] [--model DIR]

Without --model a tiny random checkpoint is made. Every answer is compared with the one its request gets alone. With batch invariance a CPU
computes every row by itself, so that a batch brings nothing there; --no-batch-invariant shows what it brings where rows share a product.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from lad_engine.backend import AsyncEngine, Limits
from lad_engine.engine import Engine
from lad_engine.server.app import build_app
from lad_engine.server.settings import ServerSettings

from .results import make_result, write_result

# Lengths and steps of the mix; every fourth request draws its tokens.
LENGTHS, STEPS = (8, 16, 24, 32), (4, 8, 12)
MOST_OVERHEAD_MS, LEAST_SPEEDUP = 5.0, 2.5
Answers = dict[int, str]


def bodies(count: int) -> list[dict[str, Any]]:
    """Return the requests: mixed lengths, steps, seeds and temperatures."""
    made = []
    for index in range(count):
        body: dict[str, Any] = {"max_new_tokens": LENGTHS[index % 4], "steps": STEPS[index % 3], "seed": index, "early_stop": False}
        made.append(body | ({"temperature": 0.8, "top_k": 20} if index % 4 == 3 else {}))
    return made


def prompt(index: int) -> str:
    """Return the prompt of a request; they differ in length."""
    return "the user is in " * (1 + index % 3)


async def in_turns(count: int, clients: int, ask: Callable[[int], Awaitable[str]]) -> tuple[float, list[float], Answers]:
    """Ask `count` requests from `clients` at once; returns (seconds, milliseconds of each, answers)."""
    waiting, times, answers = iter(range(count)), [], {}

    async def client() -> None:
        for index in waiting:
            started = time.perf_counter()
            answers[index] = await ask(index)
            times.append((time.perf_counter() - started) * 1e3)

    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return time.perf_counter() - started, times, answers


@contextlib.asynccontextmanager
async def serving(backend: AsyncEngine) -> AsyncIterator[str]:
    """Serve a backend on a free port of this machine and of this event loop; yields its address."""
    config = uvicorn.Config(build_app(backend, ServerSettings(port=0)), host="127.0.0.1", port=0, log_config=None)
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    await task


async def measure(engine: Engine, count: int, clients: Sequence[int]) -> dict[str, Any]:
    """Return requests per second for each number of clients, the overhead of HTTP per request, and how many answers differed."""
    asked = bodies(count)
    backend = AsyncEngine(engine, Limits(max_queue=count + 1))

    async def directly(index: int) -> str:
        return (await backend.generate(prompt(index), engine.sampling(**asked[index]))).text

    async with serving(backend) as address, httpx.AsyncClient(base_url=address, timeout=600) as http:

        async def over_http(index: int) -> str:
            body = {"messages": [{"role": "user", "content": prompt(index)}], **asked[index]}
            return (await http.post("/v1/chat/completions", json=body)).raise_for_status().json()["choices"][0]["message"]["content"]

        await in_turns(min(8, count), 1, over_http)
        rows, alone = [], {}
        for number in clients:
            seconds, times, answers = await in_turns(count, number, over_http)
            alone = alone or answers
            different = sum(answers.get(index) != alone[index] for index in range(count))
            rows.append(
                {"clients": number, "requests_per_s": count / seconds, "median_ms": statistics.median(times), "different": different}
            )
        # In pairs, so that a slow moment of the machine hits both.
        pairs = []
        for index in range(min(count, 60)):
            both = [(await in_turns(1, 1, lambda _, ask=ask, index=index: ask(index)))[1][0] for ask in (directly, over_http)]
            pairs.append(both[1] - both[0])
    return {"rows": rows, "overhead_ms": statistics.median(pairs)}


def main() -> None:
    """Measure, print a table, and one JSON object as the last line; 1 where a target is missed or an answer differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8], help="the first number is what the others are compared with")
    parser.add_argument("--batch-invariant", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--out", type=Path, help="write the result there too")
    parser.add_argument("--model", type=Path, help="folder of a checkpoint, decoded without an adapter")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine.load(
            arguments.model or tiny(Path(folder)),
            adapter=None,
            device="cpu",
            dtype="float32",
            threads=1,
            batch_invariant=arguments.batch_invariant,
        )
    found = asyncio.run(measure(engine, arguments.requests, arguments.clients))
    first = found["rows"][0]
    for row in found["rows"]:
        row["speedup"] = row["requests_per_s"] / first["requests_per_s"]
        speed = f"{row['requests_per_s']:7.1f} requests/s ({row['speedup']:.2f} x), {row['median_ms']:.1f} ms each"
        print(f"{row['clients']:3} clients: {speed}, {row['different']} of {arguments.requests} answers differ from those alone")
    print(
        f"HTTP adds {found['overhead_ms']:.2f} ms to a request (target: at most {MOST_OVERHEAD_MS}); target of 8 clients: {LEAST_SPEEDUP} x"
    )
    counted = "from a client's call to its parsed answer, the server in the same process; overhead: HTTP less the Python API, in pairs"
    result = make_result("serve", counted, found["rows"], requests=arguments.requests, overhead_ms=found["overhead_ms"])
    write_result(arguments.out, result)
    sys.exit(arguments.batch_invariant and any(row["different"] for row in found["rows"]))


def tiny(folder: Path) -> Path:
    """Make the tests' tiny checkpoint; it is not installed, so this needs a clone."""
    sys.path.append(str(Path(__file__).parents[1] / "tests"))
    from tiny_checkpoint import make_tiny

    return make_tiny(folder / "tiny")


if __name__ == "__main__":
    main()
