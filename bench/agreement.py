"""How often an 8-bit precision chooses the token of the weights as they are, and what one of its steps takes, on the default adapter.

python -m bench.agreement --precision int8 --out bench/results/agreement_int8.json
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from bench.results import make_result, write_result
from bench.timing import interleaved_us
from lad_engine import Engine
from lad_engine.config import PRECISIONS
from lad_engine.contracts import Canvas
from lad_engine.denoisers.lad import LadDenoiser

COUNTED = (
    "Agreement: every open position of every step of the probe set's prompts, decoded as the adapter's profile says by the weights as they "
    "are, compared with what the precision chooses on the same canvas. Times: one denoising step, embedding to state update."
)


def one_step(engine: Engine, canvas: int, answer: int) -> Callable[[], None]:
    """Return a callable that takes one greedy step of one canvas whose prompt is of random tokens."""
    params = engine.sampling("paper", max_new_tokens=answer, steps=10_000, early_stop=False, remasking="none", top_k=1)
    is_open = np.arange(canvas) >= canvas - answer
    ids = np.random.default_rng(0).integers(20, engine.facts.vocab_size, canvas)
    laid = Canvas(ids=np.where(is_open, engine.mask_id, ids), is_open=is_open, answer_start=canvas - answer)
    denoiser = LadDenoiser(engine.model, engine.ops)
    state = denoiser.begin([laid], [params], mask_id=engine.mask_id, eos_ids=engine.eos_ids, device=engine.config.device)
    return lambda: denoiser.step_(state)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--precision", default="int8", choices=PRECISIONS[1:])
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--ops", default="auto")
    parser.add_argument("--canvas", type=int, default=256)
    parser.add_argument("--answer", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    settings = {"dtype": options.dtype, "ops": options.ops}
    engine, plain = Engine.load(precision=options.precision, **settings), Engine.load(**settings)
    with torch.inference_mode():
        quantised_step, plain_step = (one_step(each, options.canvas, options.answer) for each in (engine, plain))
        times = interleaved_us({options.precision: quantised_step, plain.config.dtype: plain_step}, options.repeats)
    report = engine.agreement()
    row = {
        "model": f"{report.base}, {report.adapter}",
        "dtype": report.dtype,
        "batch": 1,
        "canvas": options.canvas,
        "answer_rows": options.answer,
        "times": times,
        "agreement": {**dataclasses.asdict(report), "verdict": report.verdict},
        "ops": dict(engine.ops.chosen),
    }
    write_result(options.out, make_result("agreement", COUNTED, [row]))


if __name__ == "__main__":
    main()
