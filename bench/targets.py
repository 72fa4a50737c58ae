"""The targets of the GPU step, computed from committed results: measured, met or missed, or said to be unmeasured.

python -m bench.targets bench/results                          # of several folders, such as one measured after tuning, a table each
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.results import RESULTS, read_results

Row = Mapping[str, Any]
UNMEASURED = "unmeasured"


@dataclass(frozen=True)
class Target:
    """One promise: what, the limit, on which side of it the promise is kept, and how to find the figure in rows of results."""

    what: str
    limit: float
    is_at_most: bool
    unit: str
    measure: Callable[[list[Row]], float | None]

    def verdict(self, rows: list[Row]) -> tuple[str, str]:
        """Return (figure, "met" | "missed" | "unmeasured")."""
        value = self.measure(rows)
        if value is None:
            return "", UNMEASURED
        is_met = value <= self.limit if self.is_at_most else value >= self.limit
        return f"{value:.3g} {self.unit}".strip(), "met" if is_met else "missed"


def step_ms(model: str, canvas: int, precision: str = "bfloat16") -> Callable[[list[Row]], float | None]:
    """Return the measure "one captured denoising step in milliseconds", batch 1, every answer row read."""

    def measure(rows: list[Row]) -> float | None:
        times = _step_times(rows, model, canvas, precision)
        ours = _fastest(times, ("ours replay", "ours loop"))
        return None if ours is None else ours / 1e3

    return measure


def step_ratio(model: str, canvas: int, peer: str) -> Callable[[list[Row]], float | None]:
    """Return the measure "time of `peer` over ours" in the same run."""

    def measure(rows: list[Row]) -> float | None:
        times = _step_times(rows, model, canvas)
        return _ratio(_fastest(times, (peer,)), _fastest(times, ("ours replay", "ours loop")))

    return measure


def head_ratio(rows: list[Row]) -> float | None:
    """Return library head and sampling over ours for 256 rows of 128256 logits."""
    found = _find(rows, bench="ops", op="lm_head", model="Llama-3.2-1B", case="top 3", batch=1, answer_rows=256, dtype="bfloat16")
    return found.get("peer_over_ours") if found else None


def decode_figure(name: str, driver: str, **setting: Any) -> Callable[[list[Row]], float | None]:
    """Return the measure "field `name` of whole decodes" of one setting."""

    def measure(rows: list[Row]) -> float | None:
        found = _find(rows, bench="decode", driver=driver, **setting)
        return found.get(name) if found else None

    return measure


def memory_gb(rows: list[Row]) -> float | None:
    """Return memory beyond weights of 8B at batch 8, canvas 2048."""
    found = _find(rows, bench="step", model="Llama-3.1-8B", canvas=2048, batch=8, precision="bfloat16", batch_invariant=False)
    return found.get("beyond_weights_gb") if found else None


_ONE_B = {"model": "Llama-3.2-1B", "batch": 1, "steps": 16, "answer_rows": 256, "canvas": 256}
_PROMPTED = {**_ONE_B, "canvas": 320}
TARGETS = (
    Target("denoising step, Llama-3.2-1B, T=256, B=1", 1.10, True, "ms", step_ms("Llama-3.2-1B", 256)),
    Target("denoising step, Llama-3.1-8B, T=512, B=1", 12.0, True, "ms", step_ms("Llama-3.1-8B", 512)),
    Target("denoising step, Llama-3.1-8B, T=512, B=1, FP8", 7.0, True, "ms", step_ms("Llama-3.1-8B", 512, "fp8")),
    Target("denoising step, SmolLM2-135M, T=256, B=1", 0.45, True, "ms", step_ms("SmolLM2-135M", 256)),
    Target("step against the authors' loop as written, 1B", 6.0, False, "x", step_ratio("Llama-3.2-1B", 256, "authors loop")),
    Target("step against the authors' loop as written, 8B", 3.0, False, "x", step_ratio("Llama-3.1-8B", 512, "authors loop")),
    Target("step against transformers compiled, 1B", 1.3, False, "x", step_ratio("Llama-3.2-1B", 256, "transformers compiled")),
    Target("step against transformers compiled, 8B", 1.1, False, "x", step_ratio("Llama-3.1-8B", 512, "transformers compiled")),
    Target("head and choice against cuBLAS + topk + softmax + multinomial, R=256, V=128256", 1.6, False, "x", head_ratio),
    Target(
        "16-step decode of a 256-token answer, 1B, B=1, T=256", 12000, False, "tokens/s", decode_figure("positions_per_s", "loop", **_ONE_B)
    ),
    Target("the same after a prompt of 64 tokens, T=320", 12000, False, "tokens/s", decode_figure("positions_per_s", "loop", **_PROMPTED)),
    Target("host time of that decode with the loop graph", 100, True, "us", decode_figure("host_us", "loop", **_ONE_B)),
    Target(
        "streaming every step of that decode, slowed by", 2.0, True, "%", decode_figure("streaming_slowdown_percent", "replay", **_ONE_B)
    ),
    Target("memory beyond weights, 8B, B=8, T=2048", 3.0, True, "GB", memory_gb),
    *(
        Target(
            f"autoregressive baseline, share of memory bandwidth, {model}, B=1",
            0.75,
            False,
            "",
            decode_figure("share_of_bandwidth", "autoregressive", model=model, batch=1),
        )
        for model in ("Llama-3.2-1B", "Llama-3.1-8B")
    ),
)


def rows_of(results: Iterable[Mapping[str, Any]], device: str | None = None) -> list[Row]:
    """Return the rows of GPU results, each with its result's bench name; later results come first, quick ones are left out.

    device: a part of the device's name; None takes any CUDA device.
    """
    out: list[Row] = []
    for result in sorted(results, key=lambda result: result["date"], reverse=True):
        is_ours = result["device_kind"] == "cuda" and not result.get("is_quick", False)
        if is_ours and (device is None or device.lower() in result["device"].lower()):
            out += [{"bench": result["bench"], "device": result["device"], **row} for row in result["rows"]]
    return out


def table(rows: list[Row]) -> str:
    """Return the targets as a Markdown table."""
    lines = ["| target | limit | measured | verdict |", "|---|---|---|---|"]
    for target in TARGETS:
        figure, verdict = target.verdict(rows)
        sign = "≤" if target.is_at_most else "≥"
        lines.append(f"| {target.what} | {sign} {target.limit:g} {target.unit} | {figure} | {verdict} |".replace("  ", " "))
    return "\n".join(lines)


def _find(rows: list[Row], **setting: Any) -> Row | None:
    return next((row for row in rows if all(row.get(name) == value for name, value in setting.items())), None)


def _step_times(rows: list[Row], model: str, canvas: int, precision: str = "bfloat16") -> Mapping[str, Any]:
    # The step with fixed tiles is a row of its own beside this one.
    found = _find(rows, bench="step", model=model, canvas=canvas, batch=1, precision=precision, batch_invariant=False)
    return found["times"] if found else {}


def _fastest(times: Mapping[str, Any], names: tuple[str, ...]) -> float | None:
    return min((times[name]["median_us"] for name in names if name in times), default=None)


def _ratio(theirs: float | None, ours: float | None) -> float | None:
    return None if theirs is None or ours is None else theirs / ours


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", type=Path, nargs="*", default=[RESULTS])
    parser.add_argument("--device", help='a part of the GPU\'s name, such as "H200"; any CUDA device otherwise')
    options = parser.parse_args()
    for folder in filter(Path.is_dir, options.folders):
        print(f"{folder}\n\n{table(rows_of(read_results(folder), options.device))}\n")


if __name__ == "__main__":
    main()
