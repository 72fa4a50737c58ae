"""What the backend's tests share: tiny engines, requests of every kind, and the answers these get alone."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lad_engine import Engine, SamplingParams
from lad_engine.backend import AsyncEngine
from tiny_checkpoint import make_tiny

WORDS = ("the", "is", "user", "an", "in", "hello", "one", "two", "three")
# Every rule, several token choices, guidance, blocks and biases: none of it may reach a batch-mate.
KINDS: tuple[dict[str, Any], ...] = (
    {"remasking": "random", "early_stop": False},
    {"remasking": "clusters", "temperature": 0.7, "top_k": 5, "early_stop": False},
    {"remasking": "bernoulli", "top_k": 0, "top_p": 0.9},
    {"remasking": "confidence", "noise_schedule": "linear", "eos_bias": 2.0},
    {"remasking": "weighted", "top_k": 0, "temperature": 1.3},
    {"remasking": "transfer", "block_length": 4, "early_stop": True},
    {"remasking": "none", "suppress_tokens": (7, 9)},
    {"remasking": "random", "retention": "locked", "eos_split": True, "early_stop": False},
    {"remasking": "random", "cfg_scale": 1.5, "early_stop": False},
    {"remasking": "random", "tokens_per_step": 3, "early_stop": False},
)


def tiny_engine(folder: Path, **settings: Any) -> Engine:
    """Load a tiny random base, written on first use, without an adapter."""
    if not (folder / "config.json").is_file():
        make_tiny(folder, tie=True)
    return Engine.load(folder, **{"adapter": None, "dtype": "float32", **settings})


def random_requests(
    count: int, seed: int = 0, kinds: tuple[dict[str, Any], ...] = KINDS, steps_between: tuple[int, int] = (4, 9)
) -> list[tuple[str, SamplingParams]]:
    """Return (prompt, parameters) of mixed lengths, steps, seeds and rules."""
    draw = random.Random(seed)
    made = []
    for index in range(count):
        steps = draw.randint(*steps_between)
        length = draw.randint(4, 3 * steps if "tokens_per_step" in kinds[index % len(kinds)] else 40)
        made.append(
            (
                " ".join(draw.choices(WORDS, k=draw.randint(1, 30))),
                SamplingParams(max_new_tokens=min(length, 12), steps=steps, seed=draw.randrange(2**62), **kinds[index % len(kinds)]),
            )
        )
    return made


def facts_of(result: Any) -> tuple:
    """Return what must not depend on batch-mates."""
    return (result.token_ids, result.confidences, result.step_map, result.text, result.nfe, result.steps, result.finish_reason)


def serve(engine: Engine, scenario: Callable[[AsyncEngine], Any], **limits: Any) -> Any:
    """Run a scenario against a backend of its own, close it, and check that its counters add up and nothing is left."""
    from lad_engine.backend import Limits

    async def run() -> Any:
        backend = AsyncEngine(engine, Limits(**{"drain_s": 5.0, **limits}))
        try:
            return await asyncio.wait_for(scenario(backend), 100)
        finally:
            await backend.close()
            check_nothing_left(backend)

    return asyncio.run(run())


@contextlib.contextmanager
def paused(backend: Any) -> Iterator[None]:
    """Let the device thread wait: what is submitted within the block starts together behind it."""
    go_on = threading.Event()
    backend._core.call(go_on.wait)
    try:
        yield
    finally:
        go_on.set()


def check_nothing_left(backend: Any) -> None:
    """Assert that every submitted request ended exactly once and no row, batch or pinned adapter is left."""
    stats = backend.stats()
    assert stats.waiting == stats.running == stats.waiting_tokens == stats.running_tokens == 0
    assert stats.submitted == stats.finished + stats.failed + stats.cancelled + stats.expired
    assert not list(backend._core._groups) and not stats.adapters
    assert not backend._core._thread.is_alive()


async def until(is_so: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait for something another thread does."""
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "it did not happen"
        await asyncio.sleep(0.002)
