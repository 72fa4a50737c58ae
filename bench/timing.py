"""The one timer behind every published figure: graph replays on a GPU, calls in turns elsewhere."""

from __future__ import annotations

import dataclasses
import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Run = Callable[[], object]
# Rotated inputs together exceed the cache by this factor, so that each call finds its own inputs evicted.
TIMES_CACHE = 2
MOST_COPIES = 64
WARM_UP_CALLS = 3


def interleaved_us(runs: Mapping[str, Run], repeats: int = 7, warm_up: int = 2) -> dict[str, dict[str, Any]]:
    """Time several callables in turns, so that a slow moment of the machine hits all of them.

    Returns:
        name -> timing of one call by the host's clock, synchronised with a GPU before and after (method "wall").
    """
    for _ in range(warm_up):
        for run in runs.values():
            run()
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            synchronise()
            started = time.perf_counter()
            run()
            synchronise()
            samples[name].append((time.perf_counter() - started) * 1e6)
    return {name: summary(times, "wall") for name, times in samples.items()}


def graph_us(runs: Run | Sequence[Run], calls: int = 20, repeats: int = 7) -> dict[str, Any]:
    """Time a GPU callable by replaying one graph of `calls` back-to-back calls, so that launch gaps of the host do not count.

    Args:
        runs: one callable, or several that do the same on different inputs and are called in turn (see `rotating`).
    Returns:
        timing of one call (method "graph").
    Raises:
        RuntimeError: the callable cannot be captured; it synchronises, or allocates outside torch.
    """
    runs = [runs] if callable(runs) else list(runs)
    calls = -(-calls // len(runs)) * len(runs)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for index in range(max(WARM_UP_CALLS, len(runs))):
            runs[index % len(runs)]()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    # The stream by name: torch leaves that of a capture current where its end fails.
    with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph):
        for index in range(calls):
            runs[index % len(runs)]()
    graph.replay()
    torch.cuda.synchronize()
    times = [_replay_us(graph) / calls for _ in range(repeats)]
    del graph
    return summary(times, "graph")


def events_us(run: Run, device: str, before: Run, calls: int, repeats: int = 7) -> dict[str, Any]:
    """Time a region that enqueues `calls` steps, by GPU events (on a CPU by its clock), with `before` run ahead of it each time.

    Returns:
        timing of one step (method "events" or "wall").
    """
    is_gpu = torch.device(device).type == "cuda"
    times = []
    # The first is the warm-up.
    for _ in range(repeats + 1):
        before()
        if is_gpu:
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            run()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) * 1e3 / calls)
        else:
            started = time.perf_counter()
            run()
            times.append((time.perf_counter() - started) * 1e6 / calls)
    return summary(times[1:], "events" if is_gpu else "wall")


def call_us(runs: Run | Sequence[Run], device: str, calls: int = 20, repeats: int = 7) -> dict[str, Any]:
    """Time by `graph_us` on a GPU and by the host's clock on a CPU; what a graph refuses is timed by the clock there too."""
    first = runs if callable(runs) else runs[0]
    if torch.device(device).type != "cuda":
        return interleaved_us({"run": first}, repeats, warm_up=1)["run"]
    try:
        return graph_us(runs, calls, repeats)
    except RuntimeError as error:
        # Memory is a reason to shrink the case, not to time it another way.
        if isinstance(error, torch.cuda.OutOfMemoryError):
            raise
        torch.cuda.synchronize()
        return interleaved_us({"run": first}, repeats)["run"]


def rotating(case: Mapping[str, Any], bytes_per_call: int, device: str) -> list[dict[str, Any]]:
    """Return copies of `case` at other addresses, enough that one call's inputs have left the cache before they come round again."""
    count = copies(bytes_per_call, cache_bytes(device))
    return [dict(case), *(copied(case) for _ in range(count - 1))]


def copies(bytes_per_call: int, cache: int) -> int:
    """Return how many input sets of `bytes_per_call` exceed a cache of `cache` bytes TIMES_CACHE times."""
    if cache <= 0:
        return 1
    return min(MOST_COPIES, -(-TIMES_CACHE * cache // max(bytes_per_call, 1)) + 1)


def cache_bytes(device: str) -> int:
    """Return the size of the GPU's last-level cache; 0 on a CPU, whose caches calls in turns do not try to defeat."""
    return torch.cuda.get_device_properties(device).L2_cache_size if torch.device(device).type == "cuda" else 0


def copied(value: Any) -> Any:
    """Return `value` with every tensor in it at a new address and of the same strides."""
    if isinstance(value, Tensor):
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device).copy_(value)
    if isinstance(value, Mapping):
        return {name: copied(item) for name, item in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(copied(item) for item in value)
    if dataclasses.is_dataclass(value):
        return dataclasses.replace(value, **{name: copied(item) for name, item in vars(value).items()})
    return value


def summary(times_us: Sequence[float], method: str) -> dict[str, Any]:
    """Return median and spread of samples of one call."""
    return {
        "median_us": statistics.median(times_us),
        "min_us": min(times_us),
        "max_us": max(times_us),
        "repeats": len(times_us),
        "method": method,
    }


def synchronise() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def stop_if_lost(where: str) -> None:
    """End the program where a kernel has broken the GPU's context: every later call would fail, whatever it is."""
    try:
        synchronise()
    except RuntimeError as error:
        raise SystemExit(f"{where}: the GPU answers no further call ({error}). What was measured before is stored.") from error


def release() -> None:
    """Give memory of dropped models and graphs back before the next one is built."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _replay_us(graph: torch.cuda.CUDAGraph) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e3
