"""One row per decoding family: our decode against a plain transcription of its reference loop, on the same weights, in the same run.

python -m bench.families.decode --out bench/results/families_<device>.json
python -m bench.families.decode --families masked --models DiffuGPT-S --steps 64
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from bench.families.latent import latent_rows
from bench.families.masked_row import masked_rows
from bench.families.simplex_row import simplex_rows
from bench.results import RESULTS, device_slug, make_result, store, write_result

COUNTED = (
    "A whole decode of one batch, eager on both sides: laying the request out, every pass, every choice. The transcription shares the "
    "model's layers and weights and does the rest as the public code does. Random weights: every position counts as a token."
)
# A family adds its own: options -> rows, each with "family", "loop", the times of "ours" and "transcription", and the figures of FIGURES.
FAMILIES: dict[str, Callable[[argparse.Namespace], Iterator[dict]]] = {
    "masked": masked_rows,
    "simplex": simplex_rows,
    "latent_ode": latent_rows,
}
FIGURES = ("nfe", "ms_per_step", "tokens_per_s", "head_rows_per_step", "peak_mib", "speedup")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--models", nargs="+", default=None, help="of the family's own list (default: its smallest published one)")
    parser.add_argument("--steps", type=int, nargs="+", default=[64])
    parser.add_argument("--prompt", type=int, default=16)
    parser.add_argument("--answer", type=int, default=256)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="float32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="sizes that prove the script and measure nothing")
    parser.add_argument("--out", type=Path, default=RESULTS / f"families_{device_slug()}.json")
    options = parser.parse_args()
    options.device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.quick:
        options.models, options.steps, options.prompt, options.answer, options.repeats = ["tiny"], [4], 4, 24, 1
    rows: list[dict] = []
    for family in options.families:
        for row in FAMILIES[family](options):
            rows.append(row)
            print(_line(row), flush=True)
            store(options.out, make_result("families", COUNTED, rows, is_quick=options.quick))
    write_result(options.out, make_result("families", COUNTED, rows, is_quick=options.quick))


def _line(row: dict) -> str:
    figures = "  ".join(f"{name} {row[name]}" for name in FIGURES if name in row)
    return f"{row['family']} {row['loop']} {row['model']} B{row['batch']} T{row['canvas']} {row['steps']} steps: {figures}"


if __name__ == "__main__":
    main()
