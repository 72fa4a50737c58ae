"""Training speed: our trainer against the authors' recipe with PEFT and transformers, on the same weights and examples in the same run.

python -m bench.train --models SmolLM2-135M --out bench/results/train_<device>.json
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.authors_training import AuthorsRecipe, AuthorsTraining
from bench.peers import transformers_model
from bench.random_model import MASK_ID, MODELS, random_model, step_flops
from bench.results import REPOSITORY, RESULTS, device_slug, make_result, store, write_result
from bench.roofs import measure_roofs
from bench.timing import release, summary, synchronise
from lad_engine.model.language_model import LanguageModel
from lad_engine.ops import select_ops
from lad_engine.train import OPS
from lad_engine.training.batches import lay_out_batch
from lad_engine.training.config import TrainConfig
from lad_engine.training.data import Examples
from lad_engine.training.gradients import differentiable
from lad_engine.training.lora import attach_trainable
from lad_engine.training.processes import Processes
from lad_engine.training.trainer import Trainer

COUNTED = (
    "One epoch over the same examples in batches of 8: laying out, noising (theirs was done beforehand and is not counted), forward, "
    "backward, clipping and AdamW. Rank 128 on q and v, base frozen, random weights. Lengths of examples: the committed data's, at 4 "
    "characters a token and 24 tokens of chat template. Authors: every example padded to 256, loss over all positions. Ours: windows as "
    "long as a batch needs, loss where the answer was damaged; 'their canvases': ours with their padding and their loss. Text tokens: "
    "prompt, answer and one EOS. MFU: the arithmetic that the text alone needs (forward and activation gradients, head on answer rows) "
    "against a measured large matrix product."
)
BATCH, WINDOW, TARGET = 8, 256, 1.5
EOS_ID, TEMPLATE, CHARACTERS = 2, 24, 4
DATA = ("self_answers", "known", "permissive")
OURS, SAME, THEIRS = "ours", "ours, their canvases", "authors' recipe"
CONFIGS = {
    OURS: {"loss": "corrupted", "tail_power": 0.0},
    # As many EOS positions as fill the window.
    SAME: {"loss": "all", "eos_pads": WINDOW, "tail_power": 0.0},
}


def lengths_of_data() -> list[tuple[int, int]]:
    """Return (prompt, answer) lengths in tokens of the committed training data, in the order of its files."""
    out = []
    for name in DATA:
        path = REPOSITORY / "bench" / "default_adapter" / "data" / f"{name}.jsonl.gz"
        with gzip.open(path, "rt", encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                asked = len(row["instruction"]) + len(row.get("input") or "")
                out.append((TEMPLATE + asked // CHARACTERS, max(len(row["output"]) // CHARACTERS, 1)))
    return out


def examples_of(vocabulary: int, count: int, lengths: list[tuple[int, int]]) -> Examples:
    """Return `count` examples of random ids whose lengths are drawn from `lengths`, those that fit the window."""
    generator = np.random.Generator(np.random.PCG64(0))
    fitting = [pair for pair in lengths if sum(pair) < WINDOW]
    chosen = [fitting[i] for i in generator.integers(0, len(fitting), count)]
    prompts, answers = ([generator.integers(8, vocabulary, pair[side]).astype(np.int32) for pair in chosen] for side in (0, 1))
    return Examples(prompts, answers, generator.integers(0, 2**62, count).tolist(), [1.0] * count)


class Ours:
    """Our trainers over one model and one set of pairs; they differ in window and loss."""

    def __init__(self, name: str, dtype: torch.dtype, device: str, examples: Examples) -> None:
        facts = MODELS[name]
        # As training runs: the other backends have no backward pass.
        ops = differentiable(select_ops(OPS, device=device))
        self.transformer = random_model(facts, ops, dtype, device)
        recipe = AuthorsRecipe()
        pairs = attach_trainable(self.transformer, recipe.targets, recipe.rank, float(recipe.rank), uses_rslora=False, dropout=0.0,
                                 train_norms=False, seed=0)  # fmt: skip
        self.trainers = {
            who: Trainer(
                LanguageModel(self.transformer), ops, pairs, examples, Examples([], [], [], []),
                TrainConfig(batch_size=BATCH, max_length=WINDOW, rank=recipe.rank, learning_rate=recipe.learning_rate, **settings),
                mask_id=MASK_ID, eos_id=EOS_ID, device=torch.device(device), processes=Processes(), export=lambda _: None, is_shown=False,
            )
            for who, settings in CONFIGS.items()
        }  # fmt: skip

    def epoch(self, who: str, updates: int) -> int:
        """Make the updates of one epoch and return how many positions were computed."""
        trainer = self.trainers[who]
        before = trainer.counters.tokens
        for _ in range(updates):
            trainer.update()
        return trainer.counters.tokens - before


class Authors:
    """Their recipe over the same weights."""

    def __init__(self, ours: Ours, dtype: torch.dtype, device: str, examples: Examples) -> None:
        self.training = AuthorsTraining(transformers_model(ours.transformer, dtype, device))
        noise = ours.trainers[SAME].ops.structured_noise
        self.batches: list[tuple[Tensor, Tensor]] = []
        for start in range(0, len(examples), BATCH):
            batch = lay_out_batch(examples, np.arange(start, start + BATCH), EOS_ID, WINDOW)
            ids, start, keys = (tensor.to(device) for tensor in (batch.ids, batch.answer_start, batch.keys))
            widths = torch.full_like(start, WINDOW)
            noised, _ = noise(ids, start, widths, keys, torch.tensor(0, device=device), MASK_ID, "paper")
            self.batches.append((noised, ids))

    def epoch(self) -> int:
        """Make the updates of one epoch and return how many positions were computed."""
        for noised, clean in self.batches:
            self.training.update(noised, clean)
        return len(self.batches) * BATCH * WINDOW


def row_of(name: str, options: argparse.Namespace, flops_per_s: float) -> dict:
    """Measure one model; the authors' side is left out where peft is not installed."""
    dtype = getattr(torch, options.dtype)
    examples = examples_of(MODELS[name].vocab_size, options.examples, lengths_of_data())
    ours, refused = Ours(name, dtype, options.device, examples), {}
    runs: dict[str, Callable[[], int]] = {who: lambda who=who: ours.epoch(who, len(examples) // BATCH) for who in CONFIGS}
    try:
        runs[THEIRS] = Authors(ours, dtype, options.device, examples).epoch
    except ImportError as error:
        refused[THEIRS] = f"{error}"
        print(f"{THEIRS}: left out, peft is not installed. Run: pip install peft.", flush=True)
    times: dict[str, list[float]] = {who: [] for who in runs}
    positions = {}
    for turn in range(options.repeats + options.warm_up):
        for who, run in runs.items():
            synchronise()
            started = time.perf_counter()
            positions[who] = run()
            synchronise()
            if turn >= options.warm_up:
                times[who].append((time.perf_counter() - started) * 1e6)
    timed = {who: summary(samples, "wall") for who, samples in times.items()}
    text = int(examples.total.sum())
    # Forward and activation gradients; the base's weights have none.
    needed = sum(2 * step_flops(MODELS[name], 1, int(t), int(a) + 1) for t, a in zip(examples.total, examples.answer_length, strict=True))
    seconds = {who: timing["median_us"] / 1e6 for who, timing in timed.items()}
    return {
        "model": name, "dtype": options.dtype, "batch": BATCH, "canvas": WINDOW, "steps": len(examples) // BATCH,
        "times": timed, "refused": refused, "text_tokens": text, "positions": positions,
        "text_tokens_per_s": {who: text / each for who, each in seconds.items()},
        "positions_per_s": {who: positions[who] / each for who, each in seconds.items()},
        "mfu": {who: needed / each / flops_per_s for who, each in seconds.items()},
        "ratios": {who: seconds[THEIRS] / seconds[who] for who in CONFIGS} if THEIRS in seconds else {},
        "target": TARGET,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=["SmolLM2-135M"])
    parser.add_argument("--examples", type=int, default=32, help=f"of one epoch, a multiple of {BATCH}")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16" if torch.cuda.is_available() else "float32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--warm-up", type=int, default=0, help="epochs before the clock runs")
    parser.add_argument("--quick", action="store_true", help="sizes that prove the script and measure nothing")
    parser.add_argument("--out", type=Path, default=RESULTS / f"train_{device_slug()}.json")
    options = parser.parse_args()
    options.device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.quick:
        options.models, options.examples, options.repeats = ["tiny"], BATCH, 1
    if options.examples < BATCH or options.examples % BATCH:
        parser.error(f"--examples is {options.examples}, expected a multiple of {BATCH}.")
    roofs = measure_roofs(options.device, (options.dtype,), options.quick)
    rows: list[dict] = []
    for name in options.models:
        rows.append(row_of(name, options, roofs.flops_per_s[options.dtype]))
        for who, rate in rows[-1]["text_tokens_per_s"].items():
            print(f"{name} {who}: {rate:.1f} text tokens/s, MFU {rows[-1]['mfu'][who]:.1%}", flush=True)
        store(options.out, make_result("train", COUNTED, rows, roofs=roofs.as_dict(), is_quick=options.quick))
        release()
    write_result(options.out, make_result("train", COUNTED, rows, roofs=roofs.as_dict(), is_quick=options.quick))


if __name__ == "__main__":
    main()
