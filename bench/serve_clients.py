"""The clients of `bench.serve`, in a process of their own: what they cost is not the server's."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

import httpx

# A request: its number, the endpoint, and the body.
Job = tuple[int, str, dict[str, Any]]
# Seconds for all, milliseconds of each, and the answers by number.
Round = tuple[float, list[float], dict[int, str]]


async def in_turns(jobs: Sequence[Job], clients: int, ask: Callable[[Job], Awaitable[str]]) -> Round:
    """Ask requests from `clients` at once, each of which asks the next one when it has its answer."""
    waiting, times, answers = iter(jobs), [], {}

    async def client() -> None:
        for job in waiting:
            started = time.perf_counter()
            answers[job[0]] = await ask(job)
            times.append((time.perf_counter() - started) * 1e3)

    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return time.perf_counter() - started, times, answers


def run(pipe: Connection, address: str) -> None:
    """Take (jobs, clients) out of the pipe and put a Round in, until None comes; what a process is started with."""
    asyncio.run(_run(pipe, address))


async def _run(pipe: Connection, address: str) -> None:
    async with httpx.AsyncClient(base_url=address, timeout=600) as http:

        async def ask(job: Job) -> str:
            (choice,) = (await http.post(job[1], json=job[2])).raise_for_status().json()["choices"]
            return choice["message"]["content"] if "message" in choice else choice["text"]

        # Nothing else happens in this process, so that waiting may block it.
        while (asked := pipe.recv()) is not None:
            pipe.send(await in_turns(*asked, ask))
