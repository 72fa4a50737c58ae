"""Whole answers: LAD by every driver at several step counts and batches, against autoregressive decoding of the same weights.

python -m bench.decode --models Llama-3.2-1B --out bench/results/decode_<device>.json
python -m bench.decode --trained                 # the default base and adapter: early stop, tokens before EOS; llama.cpp if installed
python -m bench.families.decode                  # the other families, each against a transcription of its reference loop
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from bench.autoregressive import CapturedContinuation, generate_us, summed
from bench.crossover import crossovers, plot
from bench.decoder import DRIVERS, Decoder
from bench.gguf_peer import gguf_row
from bench.random_model import MODELS, weight_bytes
from bench.results import RESULTS, device_slug, make_result, store, write_result
from bench.roofs import Roofs, measure_roofs
from bench.timing import interleaved_us, release, stop_if_lost, summary, synchronise
from bench.trained import ANSWER, QUESTIONS, trained_rows

COUNTED = (
    "LAD: laying the request out (begin_us of it), sending it, every step, and reading the last tokens back; host_us is filling, sending "
    "and launching alone. Ours autoregressive: reading the prompt plus one captured step per further token. generate: transformers' call. "
    "Random weights: every position counts as a token and none ends an answer. Family trained: the shipped adapter, tokens before EOS."
)


def lad_rows(
    decoder: Decoder, batch: int, prompt: int, answer: int, all_steps: tuple[int, ...], drivers: tuple[str, ...], repeats: int
) -> Iterator[dict]:
    """Yield one row per driver and step count."""
    canvas = prompt + answer
    for steps in all_steps:
        for driver in drivers:
            row = {
                "family": "lad",
                "driver": driver,
                "model": decoder.facts.name,
                "dtype": _name(decoder.dtype),
                "batch": batch,
                "canvas": canvas,
                "answer_rows": answer,
                "steps": steps,
                "tokens": batch * answer,
            }
            try:
                yield {**row, **_lad_figures(decoder, driver, batch, canvas, answer, steps, repeats)}
            except Exception as error:  # noqa: BLE001 - Triton's compiler raises classes of its own, and the rest is to be timed
                yield {**row, "refused": {driver: f"{type(error).__name__}: {error}"[:300]}}
                stop_if_lost(f"{driver}, {steps} steps")


@torch.inference_mode()
def _lad_figures(decoder: Decoder, driver: str, batch: int, canvas: int, answer: int, steps: int, repeats: int) -> dict:
    canvases, params = decoder.canvases(batch, canvas, answer), decoder.params(steps, answer)
    is_captured = driver != "eager"

    def decode(wants_events: bool = False) -> None:
        state = decoder.begin(canvases, params, is_captured)
        with decoder.decode(state, driver) as run:
            for _ in run.frames(wants_events):
                pass
            for row in range(batch):
                run.outcome(row)

    runs = {"plain": decode}
    if driver == "replay":
        runs["streamed"] = lambda: decode(True)
    times = interleaved_us(runs, repeats)
    begin = interleaved_us({"begin": lambda: decoder.begin(canvases, params, is_captured)}, repeats)["begin"]
    figures = {"times": {f"ours {driver}": times["plain"]}, "begin_us": begin["median_us"]}
    figures["positions_per_s"] = batch * answer / times["plain"]["median_us"] * 1e6
    figures["first_text_us"] = _first_frame_us(decoder, driver, canvases, params, repeats)
    if is_captured:
        figures["host_us"] = _host_us(decoder, driver, canvases, params, repeats)
    if "streamed" in times:
        figures["streaming_slowdown_percent"] = 100 * (times["streamed"]["median_us"] / times["plain"]["median_us"] - 1)
    return figures


def _first_frame_us(decoder: Decoder, driver: str, canvases: list, params, repeats: int) -> float:
    """Return the median time from the request to the first step a person can see (the loop driver shows none but the last)."""
    samples = []
    for _ in range(repeats):
        synchronise()
        started = time.perf_counter()
        with decoder.decode(decoder.begin(canvases, params, driver != "eager"), driver) as run:
            for _ in run.frames(driver != "loop"):
                break
            samples.append((time.perf_counter() - started) * 1e6)
        synchronise()
    return summary(samples, "wall")["median_us"]


def _host_us(decoder: Decoder, driver: str, canvases: list, params, repeats: int) -> float:
    """Return the median time the host spends to start a laid-out decode: fill and send its buffers, launch its graph or graphs."""
    samples = []
    for _ in range(repeats):
        state = decoder.begin(canvases, params, True)
        captured = decoder.graphs.lease(state)
        synchronise()
        started = time.perf_counter()
        decoder.load(captured, state)
        if driver == "loop":
            captured.loop()
        else:
            for _ in range(params.steps):
                captured.replay()
        samples.append((time.perf_counter() - started) * 1e6)
        synchronise()
        decoder.graphs.release(captured)
    return summary(samples, "wall")["median_us"]


def autoregressive_row(decoder: Decoder, batch: int, prompt: int, answer: int, roofs: Roofs, repeats: int, with_generate: bool) -> dict:
    """Return the row of one token at a time: ours captured, and transformers' generate."""
    times: dict[str, dict] = {}
    refused: dict[str, str] = {}
    figures = {}
    try:
        prefill, step = CapturedContinuation(decoder, batch, max(prompt, 1), answer).timings(repeats)
        whole = times["ours autoregressive"] = summed(prefill, step, answer - 1)
        least = weight_bytes(decoder.facts, decoder.dtype.itemsize) / roofs.bytes_per_s * 1e6
        figures = {
            "per_token_us": step["median_us"],
            "first_text_us": prefill["median_us"],
            "positions_per_s": batch * answer / whole["median_us"] * 1e6,
            "share_of_bandwidth": least / step["median_us"],
        }
    except Exception as error:  # noqa: BLE001 - as above
        refused["ours autoregressive"] = f"{type(error).__name__}: {error}"[:300]
        stop_if_lost("autoregressive")
    if with_generate:
        try:
            times["transformers generate"] = generate_us(decoder, batch, max(prompt, 1), answer, min(repeats, 3))
        except (RuntimeError, ValueError, TypeError, AttributeError) as error:
            refused["transformers generate"] = f"{type(error).__name__}: {error}"[:300]
    return {
        "family": "autoregressive",
        "driver": "autoregressive",
        "model": decoder.facts.name,
        "dtype": _name(decoder.dtype),
        "batch": batch,
        "canvas": prompt + answer,
        "answer_rows": answer,
        "steps": answer,
        "tokens": batch * answer,
        "times": times,
        "refused": refused,
        **figures,
    }


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _line(row: dict) -> str:
    times = "  ".join(f"{who} {timing['median_us'] / 1e3:.2f} ms" for who, timing in row["times"].items())
    where = f"{row['model']} B{row['batch']} T{row['canvas']} {row['steps']} steps"
    return f"{row['family']} {where}: {times or row.get('refused')}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=["SmolLM2-135M"])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--steps", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--prompt", type=int, nargs="+", default=[0, 64])
    parser.add_argument("--answer", type=int, default=256)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--no-generate", action="store_true", help="leave transformers' generate out")
    parser.add_argument("--trained", action="store_true", help="the default base and adapter instead of random weights")
    parser.add_argument("--gguf", type=Path, help="with --trained on a CPU: what llama.cpp reads, where it is installed")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="sizes that prove the script and measure nothing")
    parser.add_argument("--out", type=Path, default=RESULTS / f"decode_{device_slug()}.json")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.quick:
        options.models, options.batch, options.steps, options.prompt = ["tiny"], [2], [2, 3], [8]
        options.answer, options.repeats, options.dtype = 16, 1, "float32"
    drivers = DRIVERS if device == "cuda" or options.quick else ("eager",)
    roofs = measure_roofs(device, (options.dtype,), options.quick)
    rows: list[dict] = []

    def note(row: dict) -> None:
        rows.append({"times": {}, **row})
        print(_line(rows[-1]), flush=True)
        more = {"roofs": roofs.as_dict(), "is_quick": options.quick, "crossovers": crossovers(rows)}
        store(options.out, make_result("decode", COUNTED, rows, **more))

    if options.trained:
        for row in trained_rows(device, tuple(options.steps), drivers, options.repeats):
            note(row)
        if device == "cpu":
            peer = gguf_row(options.gguf, QUESTIONS, ANSWER, options.repeats)
            if isinstance(peer, str):
                print(peer, flush=True)
            else:
                note(peer)
    else:
        for model in options.models:
            decoder = Decoder(MODELS[model], getattr(torch, options.dtype), device)
            for prompt in options.prompt:
                for batch in options.batch:
                    for row in lad_rows(decoder, batch, prompt, options.answer, tuple(options.steps), drivers, options.repeats):
                        note(row)
                    # generate takes seconds a call; one batch shows how far it is behind.
                    with_generate = not options.no_generate and batch == options.batch[0]
                    note(autoregressive_row(decoder, batch, prompt, options.answer, roofs, options.repeats, with_generate))
            del decoder
            release()
    plot(rows, options.out.with_suffix(".png"))
    more = {"roofs": roofs.as_dict(), "is_quick": options.quick, "crossovers": crossovers(rows)}
    write_result(options.out, make_result("decode", COUNTED, rows, **more))


if __name__ == "__main__":
    main()
