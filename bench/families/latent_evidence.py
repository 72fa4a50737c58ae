"""What a trained flow path shows: held-out next-token loss given half-noised targets against the base's, and the base itself at t = 0.

python -m bench.families.latent_evidence --model runs/latent/model --out bench/results/latent_evidence.json
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from bench.results import make_result, write_result
from lad_engine.config import AUTOREGRESSIVE_DEFAULTS, SamplingParams
from lad_engine.engine import Engine
from lad_engine.training.batches import Batch
from lad_engine.training.config import TrainConfig
from lad_engine.training.data import Limits, load_examples, parse_source
from lad_engine.training.objectives.latent_ode import VALIDATION_TIMES, LatentObjective
from lad_engine.training.objectives.objective import Setting
from lad_engine.training.validation import ValidationSet

PROMPTS = ("Name three colours.", "What is the capital of France?", "Write one sentence about the sea.", "Count from one to five.")
COUNTED = (
    "Held-out answers (by text hash) of the run's own data. loss: mean cross-entropy of an answer token given x_t of its flow vector at "
    "time t, noise fixed; at t = 0 the flow path adds nothing, so that is the base model's loss. greedy: tokens with one evaluation a "
    "token against the base's own autoregressive decode. Shown where loss at t = 0.5 is lower than at 0 and every greedy token is equal."
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="model folder of a latent_ode run")
    parser.add_argument("--base", default=None, help="its base (default: the embedded one)")
    parser.add_argument("--config", type=Path, default=Path(__file__).with_name("latent.toml"))
    parser.add_argument("--data", nargs="+", default=None, help="in place of the config's")
    parser.add_argument("--examples", type=int, default=48)
    parser.add_argument("--answer", type=int, default=32)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    config = TrainConfig.load(options.config, {} if options.data is None else {"data": options.data})
    engine = Engine.load(options.model, device="cpu", dtype="float32")
    losses = held_out(engine, config, options.examples)
    greedy = compared(engine, options.base, options.answer)
    is_shown = losses["loss_t50"] < losses["loss_t0"] and greedy["equal"] == greedy["prompts"]
    row = {"family": "latent_ode", "model": Path(options.model).name, **losses, **greedy, "is_shown": is_shown}
    write_result(options.out, make_result("latent_evidence", COUNTED, [row]))
    print(json.dumps(row))
    return 0 if is_shown else 1


@torch.inference_mode()
def held_out(engine: Engine, config: TrainConfig, count: int) -> dict[str, Any]:
    """Return loss and share of tokens named right at VALIDATION_TIMES."""
    codec, eos_id = engine.codec, engine.eos_ids[0]
    limits = Limits(config.max_length, config.max_prompt, config.max_chars, config.too_long, config.system_prompt)
    _, examples, _ = load_examples(map(parse_source, config.data), codec, limits, config.val_share)
    batches: tuple[Batch, ...] = ValidationSet.build(examples, count, config.batch_size, eos_id, config.max_length).batches
    objective, out = LatentObjective(Setting(config, engine.ops, 0, eos_id)), {}
    for time in VALIDATION_TIMES:
        totals = sum(objective.score(engine.model, batch, time, torch.device("cpu")) for batch in batches).tolist()
        name = f"t{round(100 * time)}"
        out |= {f"loss_{name}": totals[0] / totals[2], f"recovered_{name}": totals[1] / totals[2], "tokens": int(totals[2])}
    return out


def compared(engine: Engine, base: str | None, answer: int) -> dict[str, int]:
    """Return for how many prompts greedy tokens of one evaluation each are the base's own."""
    plain = Engine.load(base, adapter=None, device="cpu", dtype="float32")
    theirs = plain.generate_autoregressive(list(PROMPTS), SamplingParams(max_new_tokens=answer, **AUTOREGRESSIVE_DEFAULTS))
    ours = engine.generate(list(PROMPTS), engine.sampling(max_new_tokens=answer, steps=1, temperature=0.0, top_k=1))
    return {"prompts": len(PROMPTS), "equal": sum(a.token_ids == b.token_ids for a, b in zip(ours, theirs, strict=True))}


if __name__ == "__main__":
    sys.exit(main())
