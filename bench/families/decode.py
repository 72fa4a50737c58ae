"""One row per decoding family: our decode against a plain transcription of its reference loop, on the same weights, in the same run.

python -m bench.families.decode                                    # all of them: bench/results/families_<device>.json
python -m bench.families.decode --families masked --models DiffuGPT-S --steps 64 --answer 256
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from bench.families import latent_row, masked_row, simplex_row
from bench.results import RESULTS, device_slug, make_result, store, write_result

COUNTED = (
    "A whole decode of one batch, eager on both sides: laying the request out, every pass, every choice. The transcription shares the "
    "model's layers and weights and does the rest as the public code does. Random weights: every position counts as a token, none ends "
    "an answer. L2D: a greedy continuation of one sequence, prompt included; what ours computes once per checkpoint (flow table, "
    "modulation of the grid) is outside the clock and given as table_s. Peak memory: beyond what is held before a decode."
)
# A family adds its own: (options) -> rows, each with "family", "loop", the times of "ours" and "transcription", "ratios", and FIGURES.
ROWS: dict[str, Callable[[argparse.Namespace], Iterator[dict]]] = {
    "masked": masked_row.masked_rows,
    "simplex": simplex_row.simplex_rows,
    "latent_ode": latent_row.latent_rows,
}
MODELS = {"masked": masked_row.SIZES, "simplex": simplex_row.SIZES, "latent_ode": latent_row.MODELS}
# What each is measured with unless told otherwise: models, steps, prompt, answer. Where a pass costs the same at any number of steps, few.
DEFAULTS = {
    "masked": (["DiffuGPT-S"], [64], 16, 256),
    "simplex": (["SmolLM2-135M"], [6], 16, 256),
    "latent_ode": (["SmolLM2-135M"], [latent_row.EVALUATIONS], 16, 8),
}
QUICK = {"masked": (["tiny"], [4], 4, 24), "simplex": (["tiny"], [4], 4, 24), "latent_ode": (["tiny"], [latent_row.EVALUATIONS], 4, 3)}
# Times the transcription takes of ours at least, on a CPU.
TARGETS = {("masked", "random"): 1.3, ("simplex", "ddpm"): 2.0, ("latent_ode", "midpoint"): 1.5}
FIGURES = ("nfe", "ms_per_step", "tokens_per_s", "head_rows_per_step", "peak_mib")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--families", nargs="+", choices=list(ROWS), default=list(ROWS))
    names = sorted({name for models in MODELS.values() for name in models})
    parser.add_argument(
        "--models", nargs="+", choices=names, metavar="NAME", help=f"of {', '.join(names)} (default: each family's smallest)"
    )
    parser.add_argument("--steps", type=int, nargs="+", default=None, help="passes of a decode; L2D always takes 15 evaluations a token")
    parser.add_argument("--prompt", type=int, default=None)
    parser.add_argument("--answer", type=int, default=None)
    parser.add_argument("--batch", type=int, default=1, help="L2D decodes one sequence")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="float32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="sizes that prove the script and measure nothing")
    parser.add_argument("--out", type=Path, default=RESULTS / f"families_{device_slug()}.json")
    given = parser.parse_args()
    given.device = "cuda" if torch.cuda.is_available() else "cpu"
    rows: list[dict] = []
    for family in given.families:
        options = sized(given, family)
        if not options.models:
            parser.error(
                f"--models {' '.join(given.models)}: none of them is a {family} model, expected some of {', '.join(MODELS[family])}."
            )
        for row in ROWS[family](options):
            rows.append({**row, "target": TARGETS.get((family, row["loop"])) if given.device == "cpu" else None})
            print(_line(rows[-1]), flush=True)
            store(given.out, make_result("families", COUNTED, rows, is_quick=given.quick))
    write_result(given.out, make_result("families", COUNTED, rows, is_quick=given.quick))


def sized(given: argparse.Namespace, family: str) -> argparse.Namespace:
    """Return the options of one family: what was given, else its own defaults."""
    models, steps, prompt, answer = (QUICK if given.quick else DEFAULTS)[family]
    own = argparse.Namespace(**vars(given))
    if given.quick:
        own.repeats = 1
    own.models = models if given.models is None else [name for name in given.models if name in MODELS[family]]
    own.steps = steps if given.steps is None else given.steps
    own.prompt = prompt if given.prompt is None else given.prompt
    own.answer = answer if given.answer is None else given.answer
    return own


def _line(row: dict) -> str:
    figures = "  ".join(f"{name} {row[name]:.4g}" for name in FIGURES if row.get(name) is not None)
    where = f"{row['family']} {row['loop']} {row['model']} B{row['batch']} T{row['canvas']} {row['steps']} steps"
    return f"{where}: {figures}  {row['ratios']['transcription']:.2f} x the transcription"


if __name__ == "__main__":
    main()
