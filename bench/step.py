"""One denoising step: ours by every driver, transformers eager and compiled, and the authors' loop as written, on the same random weights.

python -m bench.step --models Llama-3.2-1B --canvas 256 --out bench/results/step_<device>.json
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from bench.authors_loop import AuthorsLoop, AuthorsSettings
from bench.decoder import DRIVERS, Decoder
from bench.peers import authors_forward, compiled_forward, forward_of, transformers_model
from bench.random_model import MASK_ID, MODELS, random_ids, step_flops, weight_bytes
from bench.results import RESULTS, device_slug, make_result, store, write_result
from bench.roofs import Roofs, measure_roofs
from bench.timing import call_us, events_us, interleaved_us, release, stop_if_lost
from lad_engine.denoisers.lad_bucket import LadBuckets
from lad_engine.runtime.graphs import buffer_bytes
from lad_engine.runtime.memory import LIBRARY_BYTES, HeadUse, plan_memory

COUNTED = (
    "Ours: embedding, layers, norm, head and token choice on the answer rows, state update; captured drivers by GPU events around a whole "
    "decode, its start left out. transformers: its forward with logits of the answer rows and no mask tensor (compiled: also top-k, "
    "softmax and a draw). Authors' loop: one whole iteration by the host's clock. The same random weights for all."
)
STEPS = 16
CONTESTANTS = ("ours", "authors", "transformers", "compiled")


def measure(
    decoder: Decoder, batch: int, canvas: int, answer: int, roofs: Roofs, only: tuple[str, ...], repeats: int, drivers: tuple[str, ...]
) -> Iterator[dict]:
    """Yield one row again and again, as it grows: times by contestant, ratios to our fastest, the floor, memory beyond the weights."""
    facts, device, dtype = decoder.facts, decoder.device, str(decoder.dtype).removeprefix("torch.")
    is_gpu = torch.device(device).type == "cuda"
    has_8_bits = decoder.precision != dtype
    rate = "float8_e4m3fn" if decoder.precision == "fp8" else dtype
    floor = roofs.floor_us(weight_bytes(facts, 1 if has_8_bits else decoder.dtype.itemsize), step_flops(facts, batch, canvas, answer), rate)
    times: dict[str, dict] = {}
    row = {
        "model": facts.name,
        "dtype": dtype,
        "precision": decoder.precision,
        "batch": batch,
        "canvas": canvas,
        "answer_rows": answer,
        "floor_us": floor,
        "beyond_weights_gb": None,
        "planned_gb": planned_gb(decoder, batch, canvas, answer),
        "ops": dict(decoder.ops.chosen),
        "times": times,
        "refused": {},
    }
    weights = torch.cuda.memory_allocated() if is_gpu else 0
    if is_gpu:
        torch.cuda.reset_peak_memory_stats()
    if "ours" in only:
        for driver in drivers:
            _attempt(row, f"ours {driver}", lambda driver=driver: ours_us(decoder, driver, batch, canvas, answer, repeats))
            row["beyond_weights_gb"] = (torch.cuda.max_memory_allocated() - weights) / 1e9 if is_gpu else None
            row["loop_refused"] = decoder.loop_refused
            yield _compared(row)
    try:
        for name, run in _opponents(decoder, batch, canvas, answer, only, repeats):
            _attempt(row, name, run)
            yield _compared(row)
    except (RuntimeError, ValueError, TypeError, AttributeError, ImportError) as error:
        # A version of transformers that builds its models otherwise.
        row["refused"]["opponents"] = f"{type(error).__name__}: {error}"[:300]
        yield _compared(row)


def planned_gb(decoder: Decoder, batch: int, canvas: int, answer: int) -> float:
    """Return what the engine would plan for the captured step beside the weights."""
    state = decoder.begin(decoder.canvases(batch, canvas, answer), decoder.params(STEPS, answer), is_captured=True)
    family = LadBuckets(decoder.facts.max_positions)
    bucket = family.bucket_of(state)
    has_8_bits = decoder.precision != str(decoder.dtype).removeprefix("torch.")
    plan = plan_memory(
        decoder.facts,
        rows=bucket.rows,
        positions=bucket.positions,
        answers=bucket.answers,
        item_bytes=decoder.dtype.itemsize,
        weights=0,
        buffers=buffer_bytes(family, family.blank(bucket, state)),
        head=HeadUse(is_plain=not has_8_bits),
        precision=decoder.precision,
        library=LIBRARY_BYTES if torch.device(decoder.device).type == "cuda" else 0,
    )
    return plan.needed / 1e9


def _opponents(
    decoder: Decoder, batch: int, canvas: int, answer: int, only: tuple[str, ...], repeats: int
) -> Iterator[tuple[str, Callable[[], dict]]]:
    """Yield (name, timing) of what we are compared with, the slowest to prepare last."""
    if not set(only) - {"ours"}:
        return
    facts, device = decoder.facts, decoder.device
    theirs = transformers_model(decoder.transformer, decoder.dtype, device)
    ids = random_ids(facts, batch, canvas).to(device)
    if "authors" in only and batch == 1:
        loop = AuthorsLoop(authors_forward(theirs), MASK_ID, facts.eos_ids[0], device, AuthorsSettings(early_stop=False))
        listed, start = ids[0].tolist(), canvas - answer
        yield "authors loop", lambda: interleaved_us({"loop": lambda: loop.step(listed, start, 1)}, repeats)["loop"]
    if "transformers" in only:
        forward = forward_of(theirs, ids, answer)
        yield "transformers eager", lambda: interleaved_us({"eager": forward}, repeats)["eager"]
    if "compiled" in only:
        compiled = compiled_forward(theirs, ids, answer, 1.0, 3)
        yield "transformers compiled", lambda: call_us(compiled, device, calls=4, repeats=repeats)
        torch._dynamo.reset()


def _attempt(row: dict, name: str, run: Callable[[], dict]) -> None:
    try:
        row["times"][name] = run()
    except Exception as error:  # noqa: BLE001 - a kernel that does not compile raises classes of Triton's own, and the rest is to be timed
        row["refused"][name] = f"{type(error).__name__}: {error}"[:300]
        print(f"{row['model']} {name}: {row['refused'][name]}", flush=True)
        stop_if_lost(name)


def _compared(row: dict) -> dict:
    """Return the row with its ratios to our fastest driver."""
    ours = min((timing["median_us"] for name, timing in row["times"].items() if name.startswith("ours")), default=None)
    if ours is None:
        return dict(row)
    ratios = {name: timing["median_us"] / ours for name, timing in row["times"].items() if not name.startswith("ours")}
    return {**row, "share_of_roof": row["floor_us"] / ours, "ratios": ratios}


def ours_us(decoder: Decoder, driver: str, batch: int, canvas: int, answer: int, repeats: int) -> dict:
    """Return the time of one step of a decode of STEPS steps by one driver, a request's start left out."""
    canvases, params = decoder.canvases(batch, canvas, answer), decoder.params(STEPS, answer)
    state = decoder.begin(canvases, params, is_captured=driver != "eager")
    if driver == "eager":
        with torch.inference_mode():
            return interleaved_us({"step": lambda: decoder.denoiser.step_(state)}, repeats)["step"]
    with torch.inference_mode():
        captured = decoder.graphs.lease(state)
        try:

            def steps() -> None:
                if driver == "loop":
                    captured.loop()
                else:
                    for _ in range(STEPS):
                        captured.replay()

            # Reloaded before each: rows that are done would skip a part of the update.
            return events_us(steps, decoder.device, before=lambda: decoder.load(captured, state), calls=STEPS, repeats=repeats)
        finally:
            decoder.graphs.release(captured)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", choices=list(MODELS))
    parser.add_argument("--dtype", nargs="+", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--precision", default="auto", choices=["auto", "fp8", "int8", "int8_weights"])
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--canvas", type=int, nargs="+", default=None)
    parser.add_argument("--answer", type=int, default=256, help="answer rows, at most the canvas")
    parser.add_argument("--ops", default="auto")
    parser.add_argument("--batch-invariant", action="store_true")
    parser.add_argument("--only", nargs="+", choices=CONTESTANTS, default=None)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="sizes that prove the script and measure nothing")
    parser.add_argument("--out", type=Path, default=RESULTS / f"step_{device_slug()}.json")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    models = ["tiny"] if options.quick else options.models or ["SmolLM2-135M"]
    canvases = [64] if options.quick else options.canvas or [256]
    dtypes = options.dtype or (["bfloat16"] if device == "cuda" else ["bfloat16", "float32"])
    # Compiling for a CPU takes minutes and says nothing about a GPU; ask for it by name.
    only = tuple(options.only or (CONTESTANTS if device == "cuda" else CONTESTANTS[:3]))
    if options.precision != "auto":
        # The opponents read our weights, which are then in 8 bits.
        only = ("ours",)
    # Without a GPU the captured drivers are a simulation, which is worth running and not worth timing.
    drivers = DRIVERS if device == "cuda" or options.quick else ("eager",)
    repeats = 3 if options.quick else options.repeats
    roofs = measure_roofs(device, tuple(dtypes), options.quick)
    rows: list[dict] = []
    result: dict = {}
    for model in models:
        for dtype in dtypes:
            decoder = Decoder(MODELS[model], getattr(torch, dtype), device, options.ops, options.precision, options.batch_invariant)
            for canvas, batch in itertools.product(canvases, options.batch):
                row: dict = {}
                # Stored whenever it has grown: what a time limit cuts off keeps what was measured before.
                for row in measure(decoder, batch, canvas, min(options.answer, canvas), roofs, only, repeats, drivers):
                    found = [*rows, {**row, "batch_invariant": options.batch_invariant}]
                    result = make_result("step", COUNTED, found, roofs=roofs.as_dict(), is_quick=options.quick)
                    store(options.out, result)
                rows.append({**row, "batch_invariant": options.batch_invariant})
            del decoder
            release()
    write_result(options.out, result)


if __name__ == "__main__":
    main()
