"""What a denoising step costs as canvas and batch grow, and a decode as its steps do, with fitted exponents and the roof's own curve.

python -m bench.scaling --out bench/results/scaling_<device>.json
python -m bench.scaling --canvas 128 256 512 1024 --dtype float32 --repeats 3      # a CPU: minutes instead of an hour
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from bench.decoder import Decoder
from bench.random_model import MODELS, step_flops, weight_bytes
from bench.results import RESULTS, device_slug, make_result, store, write_result
from bench.roofs import Roofs, measure_roofs
from bench.step import ours_us
from bench.timing import interleaved_us

COUNTED = (
    "Axis canvas and batch: one denoising step, embedding to state update, half the canvas read (at most 256 rows). Axis steps: a whole "
    "decode, its start included. Exponent: slope of log time over log size by least squares, all points. Random weights."
)
AXES = ("canvas", "batch", "steps")


def exponent(times: Mapping[int, float]) -> float | None:
    """Return p of time ~ size^p, fitted to all points in logarithms; None with fewer than two."""
    if len(times) < 2:
        return None
    points = [(math.log(size), math.log(us)) for size, us in times.items()]
    mean_x, mean_y = (sum(values) / len(points) for values in zip(*points, strict=True))
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)


def exponents(rows: list[dict]) -> list[dict]:
    """Return one entry per model and axis: the exponent of what was measured and of the floor."""
    out = []
    for model, axis in sorted({(row["model"], row["axis"]) for row in rows}):
        here = [row for row in rows if (row["model"], row["axis"]) == (model, axis)]
        measured = {row[axis]: min(timing["median_us"] for timing in row["times"].values()) for row in here}
        floors = {row[axis]: row["floor_us"] for row in here}
        out.append({"model": model, "axis": axis, "exponent": exponent(measured), "exponent_of_floor": exponent(floors)})
    return out


def answer_rows(canvas: int) -> int:
    """Return how many positions of a canvas are read: half of it, at most 256."""
    return min(256, canvas // 2)


def measure(decoder: Decoder, sizes: Mapping[str, list[int]], roofs: Roofs, driver: str, repeats: int) -> Iterator[dict]:
    """Yield a row per size of every axis; the other axes stand at their first size."""
    facts, dtype = decoder.facts, str(decoder.dtype).removeprefix("torch.")
    for axis in AXES:
        for size in sizes[axis]:
            at = {name: sizes[name][0] for name in AXES} | {axis: size}
            canvas, batch, answer = at["canvas"], at["batch"], answer_rows(at["canvas"])
            floor = roofs.floor_us(weight_bytes(facts, decoder.dtype.itemsize), step_flops(facts, batch, canvas, answer), dtype)
            row = {"model": facts.name, "dtype": dtype, "axis": axis, **at, "answer_rows": answer}
            if axis == "steps":
                timing = _decode_us(decoder, driver, canvas, answer, size, repeats)
                yield {**row, "floor_us": floor * size, "times": {f"ours {driver}": timing}}
            else:
                timing = ours_us(decoder, driver, batch, canvas, answer, repeats)
                yield {**row, "steps": None, "floor_us": floor, "times": {f"ours {driver}": timing}}


def _decode_us(decoder: Decoder, driver: str, canvas: int, answer: int, steps: int, repeats: int) -> dict:
    canvases, params = decoder.canvases(1, canvas, answer), decoder.params(steps, answer)

    @torch.inference_mode()
    def decode() -> None:
        with decoder.decode(decoder.begin(canvases, params, driver != "eager"), driver) as run:
            for _ in run.frames(False):
                pass
            run.outcome(0)

    return interleaved_us({"decode": decode}, repeats, warm_up=1)["decode"]


def plot(rows: list[dict], path: Path) -> Path | None:
    """Draw time against size for each axis, the floor dashed; None without matplotlib or rows."""
    try:
        import matplotlib
    except ImportError:
        return None
    if not rows:
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(AXES), figsize=(12, 4))
    for axes, axis in zip(panels, AXES, strict=True):
        for model in sorted({row["model"] for row in rows}):
            here = [row for row in rows if (row["model"], row["axis"]) == (model, axis)]
            sizes = [row[axis] for row in here]
            ours = [min(timing["median_us"] for timing in row["times"].values()) / 1e3 for row in here]
            line = axes.plot(sizes, ours, marker="o", label=model)[0]
            axes.plot(sizes, [row["floor_us"] / 1e3 for row in here], linestyle="--", color=line.get_color())
        axes.set(xscale="log", yscale="log", xlabel=axis, ylabel="whole decode, ms" if axis == "steps" else "step, ms (dashed: roof)")
        axes.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=["SmolLM2-135M"])
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default=None)
    parser.add_argument("--canvas", type=int, nargs="+", default=[128, 256, 512, 1024, 2048, 4096])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--steps", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--machine", default="", help='what else ran meanwhile, such as "shared with other jobs"')
    parser.add_argument("--quick", action="store_true", help="sizes that prove the script and measure nothing")
    parser.add_argument("--out", type=Path, default=RESULTS / f"scaling_{device_slug()}.json")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.quick:
        options.models, options.canvas, options.batch, options.steps, options.repeats = ["tiny"], [32, 64], [1, 2], [2, 3], 1
    dtype = options.dtype or ("bfloat16" if device == "cuda" else "float32")
    sizes = {axis: sorted(getattr(options, axis)) for axis in AXES}
    roofs = measure_roofs(device, (dtype,), options.quick)
    rows: list[dict] = []
    more = {"roofs": roofs.as_dict(), "is_quick": options.quick, "machine": options.machine}
    for model in options.models:
        decoder = Decoder(MODELS[model], getattr(torch, dtype), device, batch_invariant=device == "cpu")
        for row in measure(decoder, sizes, roofs, "loop" if device == "cuda" else "eager", options.repeats):
            rows.append(row)
            print(
                {name: row[name] for name in ("axis", *AXES)}, {who: round(t["median_us"]) for who, t in row["times"].items()}, flush=True
            )
            store(options.out, make_result("scaling", COUNTED, rows, exponents=exponents(rows), **more))
    plot(rows, options.out.with_suffix(".png"))
    write_result(options.out, make_result("scaling", COUNTED, rows, exponents=exponents(rows), **more))


if __name__ == "__main__":
    main()
