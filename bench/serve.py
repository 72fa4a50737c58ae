"""What the server costs and what batching brings: clients at once against one at a time, and HTTP against the Python API, in one run.

    python -m bench.serve [--requests 200] [--clients 1 8] [--no-batch-invariant] [--model DIR]

Without --model a tiny random checkpoint is made. Two mixes: "short" canvases, whose steps a processor core does not fill with one row, and
"chat" ones, most of whose steps are products already. With batch invariance a CPU computes every row by itself, so that a batch brings
only what surrounds the products; without it rows share them. Both are measured unless one is asked for, numbers of clients in turn; the
clients have a process of their own. Every answer is compared with the one its request gets from the first number of clients.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import uvicorn

from lad_engine.backend import AsyncEngine, Limits
from lad_engine.engine import Engine
from lad_engine.server.app import build_app
from lad_engine.server.settings import ServerSettings
from lad_engine.text.prompts import Prompt

from . import serve_clients
from .results import make_result, write_result
from .serve_clients import Job, Round, in_turns

# Lengths and steps of the mixes; every fourth request of a chat draws its tokens.
LENGTHS, STEPS = {"short": (4, 6, 8, 10), "chat": (8, 16, 24, 32)}, (4, 8, 12)
# What 8 clients at once shall bring where rows share a product that does not fill the core, and what they must nowhere fall below.
MOST_OVERHEAD_MS, LEAST_SPEEDUP, LEAST_ANYWHERE = 5.0, 2.5, 0.95
# Numbers of clients take turns, so that a slow moment of the machine does not hit one of them alone.
ROUNDS = 4


def job(index: int, mix: str) -> Job:
    """Return a request of a mix: lengths, steps and seeds differ, and of chats what draws."""
    settings = {"max_new_tokens": LENGTHS[mix][index % 4], "steps": STEPS[index % 3], "seed": index, "early_stop": False}
    if mix == "short":
        return index, "/v1/completions", {"prompt": "the user is"[: 4 + index % 8], **settings}
    draws = {"temperature": 0.8, "top_k": 20} if index % 4 == 3 else {}
    return (
        index,
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "the user is in " * (1 + index % 3)}], **settings, **draws},
    )


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


@contextlib.contextmanager
def clients_of(address: str) -> Iterator[Callable[[Sequence[Job], int], Awaitable[Round]]]:
    """Start a process of clients; yields what lets so many of them ask."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve_clients.run, args=(theirs, address), daemon=True)
    process.start()
    theirs.close()

    def ask(jobs: Sequence[Job], clients: int) -> Round:
        ours.send((list(jobs), clients))
        return ours.recv()

    yield lambda jobs, clients: asyncio.to_thread(ask, jobs, clients)
    ours.send(None)
    process.join()


async def measure(engine: Engine, count: int, clients: Sequence[int]) -> dict[str, Any]:
    """Return rows of requests per second for each mix and number of clients, and what HTTP adds to a request in milliseconds."""
    backend, rows = AsyncEngine(engine, Limits(max_queue=count + 1)), []
    async with serving(backend) as address:
        with clients_of(address) as ask:
            for mix in LENGTHS:
                jobs = [job(index, mix) for index in range(count)]
                await ask(jobs[:8], 1)
                rows += [{"mix": mix, **row} for row in await _rates(backend, jobs, clients, ask)]
            # In pairs, so that a slow moment of the machine hits both.
            pairs = []
            for one in jobs[:60]:
                both = [(await in_turns([one], 1, _directly(backend))), await ask([one], 1)]
                pairs.append(both[1][1][0] - both[0][1][0])
    return {"rows": rows, "overhead_ms": statistics.median(pairs)}


async def _rates(
    backend: AsyncEngine, jobs: Sequence[Job], clients: Sequence[int], ask: Callable[[Sequence[Job], int], Awaitable[Round]]
) -> list[dict[str, Any]]:
    """Let each number of clients ask all requests, in rounds; returns a row for each number."""
    seconds, times = dict.fromkeys(clients, 0.0), {number: [] for number in clients}
    answers: dict[int, dict[int, str]] = {number: {} for number in clients}
    batches = dict.fromkeys(clients, (0, 0))
    for part in range(ROUNDS):
        for number in clients:
            before = backend.stats()
            took, each, said = await ask(jobs[part::ROUNDS], number)
            after = backend.stats()
            seconds[number] += took
            times[number] += each
            answers[number] |= said
            steps, row_steps = batches[number]
            batches[number] = steps + after.steps - before.steps, row_steps + after.row_steps - before.row_steps
    first = clients[0]
    return [
        {
            "clients": number,
            "requests_per_s": len(jobs) / seconds[number],
            "speedup": seconds[first] / seconds[number],
            "median_ms": statistics.median(times[number]),
            "mean_batch": batches[number][1] / max(1, batches[number][0]),
            "different": sum(answers[number].get(index) != answers[first].get(index) for index, _, _ in jobs),
        }
        for number in clients
    ]


def _directly(backend: AsyncEngine) -> Callable[[Job], Awaitable[str]]:
    """Return the same request to the Python API, of a chat."""

    async def ask(asked: Job) -> str:
        body = dict(asked[2])
        prompt = Prompt(messages=tuple(body.pop("messages")))
        return (await backend.generate(prompt, backend.engine.sampling(**body))).text

    return ask


def missed(rows: Sequence[dict[str, Any]], overhead_ms: float) -> list[str]:
    """Return the targets that were not met, one sentence each."""
    out = [f"HTTP adds {overhead_ms:.2f} ms to a request, expected at most {MOST_OVERHEAD_MS}"] if overhead_ms > MOST_OVERHEAD_MS else []
    for row in rows:
        where = f"{row['clients']} clients, {row['mix']}, batch_invariant {row['batch_invariant']}"
        least = LEAST_SPEEDUP if row["clients"] == 8 and row["mix"] == "short" and not row["batch_invariant"] else LEAST_ANYWHERE
        if row["speedup"] < least:
            out.append(f"{where}: {row['speedup']:.2f} x, expected at least {least} x")
        if row["batch_invariant"] and row["different"]:
            out.append(f"{where}: {row['different']} answers differ from those alone, expected none")
    return out


def main() -> None:
    """Measure, print a table and the targets that were missed, and one JSON object as the last line; 1 where an answer differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8], help="the first number is what the others are compared with")
    parser.add_argument("--batch-invariant", action=argparse.BooleanOptionalAction, default=None, help="one of the two (default: both)")
    parser.add_argument("--out", type=Path, help="write the result there too")
    parser.add_argument("--model", type=Path, help="folder of a checkpoint, decoded without an adapter")
    arguments = parser.parse_args()
    rows, overhead_ms = [], 0.0
    for is_invariant in (True, False) if arguments.batch_invariant is None else (arguments.batch_invariant,):
        with tempfile.TemporaryDirectory() as folder:
            model = arguments.model or tiny(Path(folder))
            engine = Engine.load(model, adapter=None, device="cpu", dtype="float32", threads=1, batch_invariant=is_invariant)
        found = asyncio.run(measure(engine, arguments.requests, arguments.clients))
        rows += [{**row, "batch_invariant": is_invariant} for row in found["rows"]]
        overhead_ms = max(overhead_ms, found["overhead_ms"])
    for row in rows:
        speed = f"{row['requests_per_s']:7.1f} requests/s ({row['speedup']:.2f} x), {row['median_ms']:.1f} ms each"
        speed += f", {row['mean_batch']:.1f} rows a step"
        told = f"{row['different']} of {arguments.requests} answers differ from those alone"
        print(f"{row['mix']:5} {'invariant' if row['batch_invariant'] else 'together ':9} {row['clients']:3} clients: {speed}, {told}")
    broken = missed(rows, overhead_ms)
    print(f"HTTP adds {overhead_ms:.2f} ms to a request", *broken, sep="\n")
    counted = "from a client's call to its parsed answer, the server in another process; overhead: HTTP less the Python API, in pairs"
    result = make_result("serve", counted, rows, requests=arguments.requests, overhead_ms=overhead_ms, missed=broken)
    write_result(arguments.out, result)
    sys.exit(any(row["batch_invariant"] and row["different"] for row in rows))


def tiny(folder: Path) -> Path:
    """Make the tests' tiny checkpoint; it is not installed, so this needs a clone."""
    sys.path.append(str(Path(__file__).parents[1] / "tests"))
    from tiny_checkpoint import make_tiny

    return make_tiny(folder / "tiny")


if __name__ == "__main__":
    main()
