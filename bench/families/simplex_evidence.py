"""What a simplex adaptation learnt: noised words of held-out text recovered, and texts that grow more fluent over the passes of a decode.

python -m bench.families.simplex_evidence --adapter runs/simplex/adapter.safetensors --out bench/results/simplex_evidence.json

Minutes on one core. The exit status is 0 where every claim holds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.families.evidence import Part, arguments_of, claim, config_of, finish, held_out, one_by_one
from lad_engine import Engine, StepEvent
from lad_engine.evaluation.judge import Judge
from lad_engine.evaluation.text_metrics import distinct
from lad_engine.training.config import TrainConfig
from lad_engine.training.data import Examples
from lad_engine.training.objectives.objective import Setting
from lad_engine.training.objectives.simplex import SimplexObjective
from lad_engine.training.validation import ValidationSet

SHARE = 10
COUNTED = (
    "Held-out: validation texts of the run's own data, by hash of the text, less any whose question or answer training saw. Loss: nats "
    "per answer token noised to 20, 50 and 80 % of the way, conditioned on the model's own first guess, the same noise for every model. "
    "Fluency: nats per token of answers to held-out questions under the unadapted base, reading causally; early: what the same decode has "
    "written after a tenth of its passes. Beside it: a decode of a tenth of the passes, and distinct-2 of each."
)


@torch.inference_mode()
def losses(engine: Engine, config: TrainConfig, data: ValidationSet, eos_id: int) -> list[Part]:
    """Return (summed loss, tokens) of every text, the mean over the levels of noise."""
    objective, out = SimplexObjective(Setting(config, engine.ops, engine.mask_id, eos_id)), []
    for batch in data.batches:
        value = objective.validate(engine.model, (batch,), torch.device(engine.config.device))["val_loss"]
        tokens = float((batch.first_eos - batch.answer_start + 1).sum())
        out.append((value * tokens, tokens))
    return out


def questions_of(examples: Examples, engine: Engine, count: int) -> list[str]:
    """Return the first held-out user turns."""
    return [_user_turn(engine.codec.decode(examples.prompt(index), skip_special=False)) for index in range(min(count, len(examples)))]


def texts_by_pass(engine: Engine, questions: Sequence[str], at: Sequence[int], steps: int, tokens: int, batch: int) -> dict[int, list[str]]:
    """Return what a decode of `steps` passes has written after each pass of `at`, one text per question."""
    out: dict[int, list[str]] = {number: [] for number in at}
    for start in range(0, len(questions), batch):
        part = list(questions[start : start + batch])
        params = [engine.sampling(steps=steps, max_new_tokens=tokens, seed=start + index) for index in range(len(part))]
        seen: dict[int, dict[int, str]] = {number: {} for number in at}
        for item in engine.stream(part, params):
            if isinstance(item, StepEvent) and item.step + 1 in seen:
                seen[item.step + 1][item.index] = item.text
        for number in at:
            out[number] += [seen[number][index] for index in range(len(part))]
    return out


def judged(judge: Judge, questions: Sequence[str], texts: Sequence[str]) -> list[Part]:
    """Return (nats, tokens) of every text under the judge; an empty text has none."""
    return [judge.score(question, text) for question, text in zip(questions, texts, strict=True)]


def evidence(options: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the claims, measured on the same held-out text, and what else is worth keeping."""
    config = config_of(options)
    settings = {"device": options.device, "dtype": "float32", "mask_token": config.mask_token}
    adapted = Engine.load(config.base, adapter=options.adapter, **settings)
    base = Engine.load(config.base, adapter=None, **settings)
    eos_id = adapted.eos_ids[0]
    examples = held_out(config, adapted.codec)
    data = one_by_one(examples, options.examples, eos_id, config.max_length)
    base.model.head.predicts_next_token = config.predicts_next_token
    claims = [
        claim(
            "validation loss, against the unadapted model",
            losses(adapted, config, data, eos_id), losses(base, config, data, eos_id), lower_is_better=True,
        )
    ]  # fmt: skip
    base.model.head.predicts_next_token = False
    questions, judge = questions_of(examples, adapted, options.questions), Judge(base)
    steps, few = options.steps, max(options.steps // SHARE, 1)
    asked = (options.tokens, config.batch_size)
    whole, short = texts_by_pass(adapted, questions, (few, steps), steps, *asked), texts_by_pass(adapted, questions, (few,), few, *asked)
    texts = {"last_pass": whole[steps], "early_pass": whole[few], "short_decode": short[few]}
    nats = {name: judged(judge, questions, each) for name, each in texts.items()}
    claims.append(
        claim(f"judge's nats per token after pass {steps}, against after pass {few}", nats["last_pass"], nats["early_pass"],
              lower_is_better=True)
    )  # fmt: skip
    fluency = {name: {"distinct_2": distinct(each, 2), "empty": sum(not count for _, count in nats[name])} for name, each in texts.items()}
    beside = claim(f"judge's nats per token of {steps} passes, against a decode of {few}", nats["last_pass"], nats["short_decode"],
                   lower_is_better=True)  # fmt: skip
    samples = [dict(zip(("question", *texts), row, strict=True)) for row in zip(questions, *texts.values(), strict=True)]
    return claims, {"held_out": len(examples), "steps": steps, "fluency": fluency, "beside": [beside], "samples": samples}


def _user_turn(rendered: str) -> str:
    """Return the last user turn of a conversation in the base's chat template."""
    return rendered.rpartition("<|im_start|>user\n")[2].partition("<|im_end|>")[0]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = arguments_of(__doc__, "simplex.toml", 10)
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--questions", type=int, default=8, help="held-out questions that are answered")
    parser.add_argument("--steps", type=int, default=100, help="passes of a decode")
    parser.add_argument("--tokens", type=int, default=16, help="tokens of an answer")
    options = parser.parse_args(arguments)
    claims, more = evidence(options)
    return finish("simplex", COUNTED, options.adapter.parent, claims, options.out, **more)


if __name__ == "__main__":
    sys.exit(main())
