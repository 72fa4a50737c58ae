"""At how many denoising steps autoregressive decoding becomes faster, from measured decodes, as numbers and as a picture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]


def crossover_steps(decode_us: Mapping[int, float], autoregressive_us: float) -> float | None:
    """Return the number of steps at which a decode takes as long as the autoregressive one.

    decode_us: whole decodes by their number of steps. Time is taken as fixed + steps * each, fitted by least squares.
    Returns:
        None with fewer than two measurements, or where more steps do not take longer.
    """
    if len(decode_us) < 2:
        return None
    mean_steps = sum(decode_us) / len(decode_us)
    mean_us = sum(decode_us.values()) / len(decode_us)
    spread = sum((steps - mean_steps) ** 2 for steps in decode_us)
    each = sum((steps - mean_steps) * (us - mean_us) for steps, us in decode_us.items()) / spread
    if each <= 0:
        return None
    fixed = mean_us - each * mean_steps
    return max(0.0, (autoregressive_us - fixed) / each)


def crossovers(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Return one entry per (model, batch, canvas) that has both families: where the fastest of each cross."""
    ours: dict[tuple, dict[int, float]] = {}
    theirs: dict[tuple, dict[str, float]] = {}
    for row in rows:
        key = (row["model"], row["batch"], row["canvas"])
        for name, timing in row["times"].items():
            if row["family"] == "autoregressive":
                theirs.setdefault(key, {})[name] = timing["median_us"]
            elif row["family"] == "lad":
                known = ours.setdefault(key, {})
                known[row["steps"]] = min(timing["median_us"], known.get(row["steps"], timing["median_us"]))
    out = []
    for key in ours:
        if key in theirs:
            fastest = min(theirs[key], key=theirs[key].__getitem__)
            steps = crossover_steps(ours[key], theirs[key][fastest])
            model, batch, canvas = key
            out.append({"model": model, "batch": batch, "canvas": canvas, "against": fastest, "crossover_steps": steps})
    return out


def plot(rows: Iterable[Row], path: Path) -> Path | None:
    """Draw time against steps with a level line for the autoregressive decoder; None without matplotlib or rows to draw."""
    try:
        import matplotlib
    except ImportError:
        return None
    rows = [row for row in rows if row["canvas"] is not None]
    if not rows:
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    for model, batch, canvas in sorted({(row["model"], row["batch"], row["canvas"]) for row in rows}):
        here = [row for row in rows if (row["model"], row["batch"], row["canvas"]) == (model, batch, canvas)]
        points: dict[int, float] = {}
        for row in (row for row in here if row["family"] == "lad"):
            for timing in row["times"].values():
                points[row["steps"]] = min(timing["median_us"] / 1e3, points.get(row["steps"], float("inf")))
        if not points:
            continue
        label = f"{model}, batch {batch}, T={canvas}"
        line = axes.plot(sorted(points), [points[steps] for steps in sorted(points)], marker="o", label=label)[0]
        levels = [timing["median_us"] / 1e3 for row in here if row["family"] == "autoregressive" for timing in row["times"].values()]
        if levels:
            axes.axhline(min(levels), color=line.get_color(), linestyle="--")
    axes.set(xscale="log", yscale="log", xlabel="denoising steps", ylabel="whole answer, ms (dashed: autoregressive)")
    axes.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path
