"""Time every backend and tile of the ops that have a choice, at model shapes, and write the table the engine reads on this GPU.

    python -m bench.tune                     # kernels/tuned/<gpu>.json, and the timings in bench/results/

On a machine without a GPU nothing is written but the timings: a table is keyed by the GPU's name.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import importlib
import inspect
import multiprocessing
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from bench.op_cases import Case, Setting, op_cases
from bench.ops import backends_of
from bench.random_model import MODELS
from bench.results import RESULTS, conditions, device_slug, make_result, store, write_result
from bench.timing import call_us, release, rotating, stop_if_lost, synchronise
from lad_engine.kernels.tile_table import FOLDER, Choice, TileTable, write_table
from lad_engine.ops import OP_NAMES, load_op

COUNTED = "One call per backend and tile, median over graph replays with inputs rotated past the cache; the fastest goes into the table."
# A tile must beat the kernel's own formula by this much to be written down: less is the spread between two runs.
WORTH_NAMING = 0.98
# What the targets are measured at, before everything else: a session may end early.
FIRST = (("Llama-3.2-1B", 1, 256), ("Llama-3.1-8B", 1, 512), ("SmolLM2-135M", 1, 256))
BATCHES, CANVASES = (1, 2, 4, 8), (256, 512, 1024, 2048)
MOST_COMPILERS = 12


def tiles(name: str, backend: str, case: Case, architecture: int) -> list[dict[str, int]]:
    """Return the configurations worth timing: the empty one (the kernel's formula), then what `candidates` of its file lists."""
    op = load_op(name)
    try:
        module = importlib.import_module(f"{op.package}.{backend}_kernel") if backend != "reference" else None
    except ImportError:
        return []
    if not hasattr(module, "candidates"):
        return [{}]
    model, size = op.shape(**case)
    element_bytes = next(value.element_size() for value in case.values() if isinstance(value, torch.Tensor) and value.is_floating_point())
    known = {**model, **size, "element_bytes": element_bytes, "architecture": architecture}
    arguments = {parameter: known[parameter] for parameter in inspect.signature(module.candidates).parameters}
    # The first is the formula's own.
    return [{}, *module.candidates(**arguments)[1:]]


def tune_case(name: str, case: Case, at: Setting, times: Mapping[str, int], architecture: int) -> tuple[dict, list[dict]]:
    """Time one op at one shape; returns (the row of the result, what was timed as {"backend", "config", "us"})."""
    op, timed, refused, measured = load_op(name), [], {}, {}
    inputs = rotating(case, op.bytes_moved(**case), at.device)
    for backend in backends_of(name, at.device):
        if backend == "reference" and len(backends_of(name, at.device)) > 1:
            continue
        for config in tiles(name, backend, case, architecture):
            label = f"{backend} {' '.join(f'{key}={value}' for key, value in config.items())}".strip()
            try:
                run = op.configured(backend, config)
                timing = call_us([lambda run=run, one=one: run(**one) for one in inputs], at.device, **times)
            except Exception as error:  # noqa: BLE001 - Triton reports a tile that does not fit by classes of its own
                refused[label] = f"{type(error).__name__}: {error}"[:200]
                stop_if_lost(f"{name}={label}")
                continue
            measured[label] = timing
            timed.append({"backend": backend, "config": config, "us": timing["median_us"]})
    dtype = str(at.dtype).removeprefix("torch.")
    setting = {"model": at.facts.name, "dtype": dtype, "batch": at.batch, "canvas": at.canvas, "answer_rows": at.answer_rows}
    return {**setting, "op": name, "times": measured, "refused": refused}, timed


def shapes_of(models: Iterable[str]) -> list[tuple[str, int, int]]:
    """Return (model, batch, canvas) of everything that is tuned, the shapes of the targets first."""
    models = list(models)
    every = [(model, batch, canvas) for batch in BATCHES for canvas in CANVASES for model in models]
    return list(dict.fromkeys([*(one for one in FIRST if one[0] in models), *every]))


@contextlib.contextmanager
def compilers() -> Iterator[concurrent.futures.Executor]:
    """Processes that fill Triton's cache on disk: one compiles for seconds what is timed in milliseconds."""
    count = min(MOST_COMPILERS, max(1, (os.cpu_count() or 1) - 2))
    # Not forked: a CUDA context does not survive that.
    pool = concurrent.futures.ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn"))
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def compile_ahead(pool: concurrent.futures.Executor, names: Iterable[str], at: Setting, architecture: int) -> None:
    """Compile every tile of a shape in other processes before this one times it; nothing is timed meanwhile."""
    jobs = [
        (name, label, backend, config)
        for name in names
        for label, case in op_cases(name, at).items()
        for backend in backends_of(name, at.device)
        if backend != "reference"
        for config in tiles(name, backend, case, architecture)
    ]
    release()
    settled = concurrent.futures.wait([pool.submit(compile_one, at, *job) for job in jobs]).done
    broken = [job for job in settled if job.exception() is not None]
    if broken:
        print(f"{len(broken)} compilers died ({broken[0].exception()}); their tiles are compiled as they are timed", flush=True)


def compile_one(at: Setting, name: str, label: str, backend: str, config: dict[str, int]) -> str:
    """Call one tile once, for its effect on the cache; returns why it was refused, which the timing will find too."""
    try:
        load_op(name).configured(backend, config)(**op_cases(name, at)[label])
        synchronise()
    except Exception as error:  # noqa: BLE001 - as in tune_case
        return f"{type(error).__name__}: {error}"[:200]
    return ""


def choice_of(shape: tuple[Mapping[str, Any], Mapping[str, int]], timed: Iterable[Mapping[str, Any]]) -> Choice | None:
    """Return the fastest of what was timed at a shape, the formula's tile where no other is clearly faster; None where nothing ran."""
    best: dict[str, Mapping[str, Any]] = {}
    for one in timed:
        known = best.get(one["backend"])
        limit = None if known is None else known["us"] * (WORTH_NAMING if not known["config"] else 1.0)
        if limit is None or one["us"] < limit:
            best[one["backend"]] = one
    if not best:
        return None
    fastest = min(best.values(), key=lambda one: one["us"])
    us = {backend: one["us"] for backend, one in best.items()}
    return Choice(dict(shape[0]), dict(shape[1]), fastest["backend"], dict(fastest["config"]), us)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--models", nargs="+", choices=list(MODELS), default=["Llama-3.2-1B", "Llama-3.1-8B", "SmolLM2-135M", "Llama-3.2-3B"]
    )
    parser.add_argument("--ops", nargs="+", choices=OP_NAMES, default=OP_NAMES)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--tables", type=Path, default=FOLDER, help="folder of the table")
    parser.add_argument("--quick", action="store_true", help="sizes that prove the script and measure nothing")
    parser.add_argument("--out", type=Path, default=RESULTS / f"tune_{device_slug()}.json")
    options = parser.parse_args()
    is_gpu = torch.cuda.is_available()
    device = "cuda" if is_gpu else "cpu"
    major, minor = torch.cuda.get_device_capability() if is_gpu else (9, 0)
    times = {"calls": 2, "repeats": 2} if options.quick or not is_gpu else {"calls": 20, "repeats": 5}
    names = [name for name in options.ops if load_op(name).shape is not None]
    shapes = [("tiny", 1, 32)] if options.quick or not is_gpu else shapes_of(options.models)
    rows: list[dict] = []
    choices: dict[str, list[Choice]] = {name: [] for name in names}
    result = make_result("tune", COUNTED, rows, is_quick=options.quick)
    with compilers() if is_gpu and not options.quick else contextlib.nullcontext() as pool:
        for model, batch, canvas in shapes:
            at = Setting(MODELS[model], batch, canvas, min(canvas, 256), getattr(torch, options.dtype), device)
            if pool is not None:
                compile_ahead(pool, names, at, 10 * major + minor)
            for name in names:
                for case in op_cases(name, at).values():
                    row, timed = tune_case(name, case, at, times, 10 * major + minor)
                    choice = choice_of(load_op(name).shape(**case), timed)
                    known = [(one.model, one.size) for one in choices[name]]
                    if choice is not None and (choice.model, choice.size) not in known:
                        choices[name].append(choice)
                    rows.append(row)
                    print(f"{name} {model} B{batch} T{canvas}: {choice and (choice.backend, choice.config, choice.us)}", flush=True)
                release()
            # Written after every shape: a session cut short leaves what it has found.
            result = make_result("tune", COUNTED, rows, is_quick=options.quick)
            store(options.out, result)
            if is_gpu and not options.quick:
                found = {name: tuple(listed) for name, listed in choices.items() if listed}
                about = {name: value for name, value in conditions().items() if name in ("commit", "date", "versions")}
                print(write_table(TileTable(torch.cuda.get_device_name(), found, about), options.tables))
    write_result(options.out, result)


if __name__ == "__main__":
    main()
