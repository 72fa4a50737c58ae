"""What a trained flow path shows: held-out next-token loss given half-noised targets against the base's, and the base itself at t = 0.

python -m bench.families.latent_evidence --model runs/latent/model --out bench/results/latent_evidence.json

Minutes on one core. The exit status is 0 where every claim holds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.families.evidence import Part, arguments_of, claim, config_of, exactly, finish, held_out, one_by_one
from lad_engine import Engine
from lad_engine.config import AUTOREGRESSIVE_DEFAULTS, SamplingParams
from lad_engine.model.kv_cache import KVCache
from lad_engine.training.batches import Batch
from lad_engine.training.config import TrainConfig
from lad_engine.training.objectives.latent_ode import LatentObjective
from lad_engine.training.objectives.objective import Setting
from lad_engine.training.validation import ValidationSet

PROMPTS = ("Name three colours.", "What is the capital of France?", "Write one sentence about the sea.", "Count from one to five.")
# Half-way, and a time at which the noise (sigma 64 in 256 components) leaves more than a trace of the target.
TIME, LATE = 0.5, 0.9
# A wrong target is the token this many places before: of the same text, and at another position.
WRONG_BY = 5
COUNTED = (
    "Held-out: validation texts of the run's own data, by hash of the text, less any whose question or answer training saw. Loss: nats per "
    "answer token. The flow path is given x_t of the token's own flow vector at t = 0.5, noise fixed; the base names the same tokens by "
    "itself, loaded without a flow path. At t = 0 the flow path is run and must add nothing: its losses are compared bit for bit with the "
    "base's, and greedy answers of one evaluation a token with the base's own autoregressive ones. A wrong target (the token five places "
    "before) tells what the target gives from what training on this kind of text gives."
)


@torch.inference_mode()
def flow_losses(engine: Engine, config: TrainConfig, data: ValidationSet, time: float, is_wrong: bool = False) -> list[Part]:
    """Return (summed loss, tokens) of every text with the flow path at one time, given its own targets or wrong ones."""
    objective = LatentObjective(Setting(config, engine.ops, 0, engine.eos_ids[0]))
    device = torch.device(engine.config.device)
    shown = [batch.ids.roll(WRONG_BY, 1).to(device) if is_wrong else None for batch in data.batches]
    totals = [objective.score(engine.model, batch, time, device, each) for batch, each in zip(data.batches, shown, strict=True)]
    return [(float(total[0]), float(total[2])) for total in totals]


@torch.inference_mode()
def base_losses(engine: Engine, data: ValidationSet) -> list[Part]:
    """Return (summed loss, tokens) of every text under the base alone."""
    return [_base_loss(engine, batch) for batch in data.batches]


def _base_loss(engine: Engine, batch: Batch) -> Part:
    ids = batch.ids.to(engine.config.device)
    first, last, transformer = max(int(batch.answer_start[0]), 1), int(batch.first_eos[0]), engine.model.transformer
    # With a cache, as the flow path reads it: the causal forward without one may sum in another order.
    cache = KVCache(transformer.facts, 1, ids.shape[1] - 1, transformer.embed.dtype, ids.device)
    hidden = transformer(ids[:, :-1], cache=cache)[0, first - 1 : last]
    logits, targets = engine.model.head.logits(hidden), ids[0, first : last + 1]
    return float(torch.nn.functional.cross_entropy(logits, targets, reduction="sum")), float(len(targets))


def greedy_equal(engine: Engine, plain: Engine, answer: int) -> int:
    """Return for how many prompts greedy tokens of one evaluation each are the base's own."""
    theirs = plain.generate_autoregressive(list(PROMPTS), SamplingParams(max_new_tokens=answer, **AUTOREGRESSIVE_DEFAULTS))
    ours = engine.generate(list(PROMPTS), engine.sampling(max_new_tokens=answer, steps=1, temperature=0.0, top_k=1))
    return sum(a.token_ids == b.token_ids for a, b in zip(ours, theirs, strict=True))


def evidence(options: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the claims, measured on the same held-out text, and what else is worth keeping."""
    config = config_of(options)
    settings = {"device": options.device, "dtype": "float32"}
    engine = Engine.load(options.model, **settings)
    # It continues text and hides nothing: whatever its tokenizer has, no piece has to stand for a mask.
    plain = Engine.load(config.base, adapter=None, mask_token=None, **settings)
    examples = held_out(config, engine.codec)
    data = one_by_one(examples, options.examples, engine.eos_ids[0], config.max_length)
    base, start, half = base_losses(plain, data), flow_losses(engine, config, data, 0.0), flow_losses(engine, config, data, TIME)
    claims = [
        claim("next-token loss given a half-noised target, against the base model", half, base, lower_is_better=True),
        exactly("texts whose loss at t = 0 is the base's, bit for bit", sum(a == b for a, b in zip(start, base, strict=True)), len(base)),
        exactly("greedy answers at t = 0 that are the base's", greedy_equal(engine, plain, options.answer), len(PROMPTS)),
    ]
    late = flow_losses(engine, config, data, LATE)
    beside = [claim(f"the same at t = {LATE}", late, base, lower_is_better=True)]
    for time, own in ((TIME, half), (LATE, late)):
        wrong = flow_losses(engine, config, data, time, is_wrong=True)
        beside.append(claim(f"at t = {time}, against a wrong target", own, wrong, lower_is_better=True))
    return claims, {"held_out": len(examples), "beside": beside}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = arguments_of(__doc__, "latent.toml", 32)
    parser.add_argument("--model", type=Path, required=True, help="model folder of a latent_ode run")
    parser.add_argument("--answer", type=int, default=32, help="tokens of a greedy answer")
    options = parser.parse_args(arguments)
    claims, more = evidence(options)
    return finish("latent_ode", COUNTED, options.model.parent, claims, options.out, **more)


if __name__ == "__main__":
    sys.exit(main())
