"""Two plots as PNG: quality against steps with and without re-noising, and when answers settle (the paper's figures 4 and 6)."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError

log = logging.getLogger(__name__)
METRICS = {"perplexity": "perplexity under the judge (lower is better)", "distinct_2": "distinct-2 (higher is better)"}


def plot_quality(path: Path, records: Sequence[Mapping[str, Any]]) -> Path | None:
    """Draw judge perplexity and distinct-2 over the step limit, one line per way of decoding; None where there is nothing to draw.

    Raises:
        ConfigError: the file cannot be written.
    """
    lines: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        if record["settings"]["way"] == "diffusion":
            lines.setdefault(record["condition"].rpartition(", ")[0], []).append(record)
    figures = _figures(2) if any(len(line) > 1 for line in lines.values()) else None
    if figures is None:
        return None
    figure, axes = figures
    for axis, (metric, label) in zip(axes, METRICS.items(), strict=True):
        for name, line in lines.items():
            drawn = [one for one in line if one["metrics"][metric]["value"] is not None]
            steps, values = [one["settings"]["steps"] for one in drawn], [one["metrics"][metric] for one in drawn]
            axis.plot(steps, [value["value"] for value in values], marker="o", label=name)
            if all(value["low"] is not None for value in values):
                axis.fill_between(steps, [value["low"] for value in values], [value["high"] for value in values], alpha=0.15)
        for record in records:
            if record["settings"]["way"] == "autoregressive" and record["metrics"][metric]["value"] is not None:
                axis.axhline(record["metrics"][metric]["value"], linestyle=":", color="grey", label=record["condition"])
        axis.set(xlabel="steps at most", ylabel=label, xscale="log")
        axis.set_xticks(sorted({record["settings"]["steps"] for line in lines.values() for record in line}), minor=False)
        axis.get_xaxis().set_major_formatter("{x:.0f}")
        axis.get_xaxis().set_minor_locator(_no_ticks())
    axes[0].legend(fontsize="small")
    return _saved(figure, path)


def plot_convergence(path: Path, records: Sequence[Mapping[str, Any]]) -> Path | None:
    """Draw after which step answers changed no more, for each way of decoding at its largest step limit; None where there is nothing.

    Raises:
        ConfigError: the file cannot be written.
    """
    largest: dict[str, Mapping[str, Any]] = {}
    for record in records:
        if record["settings"]["way"] == "diffusion":
            name = record["condition"].rpartition(", ")[0]
            if name not in largest or record["settings"]["steps"] > largest[name]["settings"]["steps"]:
                largest[name] = record
    figures = _figures(len(largest)) if largest else None
    if figures is None:
        return None
    figure, axes = figures
    for axis, record in zip(axes, largest.values(), strict=True):
        counts = Counter(row["settled_at"] for row in record["rows"])
        axis.bar(list(counts), list(counts.values()), width=0.9)
        axis.set(xlabel="step after which nothing changed", ylabel="answers", title=record["condition"])
        axis.set_xlim(0, record["settings"]["steps"] + 1)
    return _saved(figure, path)


def _figures(count: int) -> tuple[Any, Sequence[Any]] | None:
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        log.warning('matplotlib is not installed, so no plots are drawn; pip install "lad-engine[eval]" brings it')
        return None
    figure, axes = pyplot.subplots(1, count, figsize=(6 * count, 4), squeeze=False)
    return figure, axes[0]


def _no_ticks() -> Any:
    from matplotlib.ticker import NullLocator

    return NullLocator()


def _saved(figure: Any, path: Path) -> Path:
    try:
        figure.tight_layout()
        # The library's version would be written into the file otherwise.
        figure.savefig(path, dpi=110, metadata={"Software": None})
    except OSError as error:
        raise ConfigError(f"out: {path} cannot be written ({error.strerror}). Choose another --out.") from error
    finally:
        from matplotlib import pyplot

        pyplot.close(figure)
    return path
