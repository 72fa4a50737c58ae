"""One denoising step against one forward pass of transformers on the same weights and canvas.

    python bench/step.py --dtype bfloat16 float32 --out bench/results/step_cpu.json

Counted for us: embedding, all layers, final norm and head on the answer rows, token choice, the state update. Counted for
transformers: its own forward with an all-visible mask, which makes logits for every position and chooses nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import transformers
from timing import conditions, interleaved_ms, write_result

from lad_engine import Engine
from lad_engine.contracts import Canvas
from lad_engine.denoisers.lad import LadDenoiser
from lad_engine.model.weights import open_checkpoint


def measure(dtype: str, canvas_length: int, answer_length: int, repeats: int) -> dict:
    """Return medians of both and their ratio for one canvas of the default base, greedy, no re-noising."""
    engine = Engine.load(adapter=None, dtype=dtype, mask_token="<empty_output>")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(open_checkpoint(None).folder, dtype=getattr(torch, dtype)).eval()
    ids = np.random.default_rng(0).integers(20, engine.facts.vocab_size, canvas_length)
    start = canvas_length - answer_length
    canvas = Canvas(
        ids=np.where(np.arange(canvas_length) < start, ids, engine.mask_id), is_open=np.arange(canvas_length) >= start, answer_start=start
    )
    params = engine.sampling("paper", max_new_tokens=answer_length, steps=10_000, early_stop=False, remasking="none", top_k=1)
    denoiser = LadDenoiser(engine.model, engine.ops)
    state = denoiser.begin([canvas], [params], mask_id=engine.mask_id, eos_ids=engine.eos_ids, device="cpu")
    batch = torch.from_numpy(ids)[None]
    mask = torch.zeros(1, 1, canvas_length, canvas_length, dtype=getattr(torch, dtype))
    with torch.inference_mode():
        times = interleaved_ms({"ours": lambda: denoiser.step_(state), "transformers": lambda: theirs(batch, attention_mask=mask)}, repeats)
    return {
        "dtype": dtype,
        "batch": 1,
        "canvas": canvas_length,
        "answer_rows": answer_length,
        **times,
        "transformers_over_ours": times["transformers"]["median_ms"] / times["ours"]["median_ms"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dtype", nargs="+", default=["bfloat16", "float32"], choices=["bfloat16", "float32"])
    parser.add_argument("--canvas", type=int, default=256)
    parser.add_argument("--answer", type=int, nargs="+", default=[64, 192])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = [measure(dtype, options.canvas, answer, options.repeats) for dtype in options.dtype for answer in options.answer]
    model = "SmolLM2-135M-Instruct, unadapted"
    write_result(options.out, {"bench": "step", "model": model, "transformers": transformers.__version__, **conditions(), "rows": rows})


if __name__ == "__main__":
    main()
