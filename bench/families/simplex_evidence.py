"""What a simplex adaptation learnt: noised words of held-out text recovered, and texts that grow more fluent over the passes of a decode.

python -m bench.families.simplex_evidence --adapter runs/simplex/adapter.safetensors --out bench/results/simplex_evidence.json

Held-out is what training held out: the same files, share and hash (`--config`, bench/families/simplex.toml by default). The judge is the
unadapted base, reading autoregressively.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.results import conditions, write_result
from lad_engine import Engine, StepEvent
from lad_engine.evaluation.judge import Judge
from lad_engine.training.config import TrainConfig
from lad_engine.training.data import Examples, Limits, load_examples, parse_source
from lad_engine.training.objectives.objective import Setting
from lad_engine.training.objectives.simplex import SimplexObjective
from lad_engine.training.validation import ValidationSet


def recovered(engine: Engine, config: TrainConfig, data: ValidationSet, eos_id: int) -> dict[str, float]:
    """Return loss and recovered share of answer tokens at fixed levels of noise; the noise is the same for every model."""
    objective = SimplexObjective(Setting(config, engine.ops, engine.mask_id, eos_id))
    values = objective.validate(engine.model, data.batches, torch.device(engine.config.device))
    return {name.removeprefix("val_"): value for name, value in values.items()}


def questions_of(examples: Examples, engine: Engine, count: int) -> list[str]:
    """Return held-out user turns, in the order of their keys."""
    order = sorted(range(len(examples)), key=lambda i: int(examples.key[i]))[:count]
    return [_user_turn(engine.codec.decode(examples.prompt(index), skip_special=False)) for index in order]


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


def judged(judge: Judge, questions: Sequence[str], texts: Sequence[str]) -> dict[str, float]:
    """Return the judge's perplexity per token over all texts, and how many are empty."""
    scores = [judge.score(question, text) for question, text in zip(questions, texts, strict=True)]
    tokens = sum(count for _, count in scores)
    loss = sum(part for part, _ in scores) / max(tokens, 1)
    return {"perplexity": math.exp(min(loss, 50.0)), "nats_per_token": loss, "empty": sum(not count for _, count in scores)}


def evidence(options: argparse.Namespace) -> dict[str, Any]:
    """Measure the adapted model against the unadapted one on the same held-out text, and its own early passes against its last."""
    config = TrainConfig.load(options.config, {"base": options.base} if options.base else {})
    settings = {"device": options.device, "dtype": "float32", "mask_token": config.mask_token}
    adapted = Engine.load(config.base, adapter=options.adapter, **settings)
    base = Engine.load(config.base, adapter=None, **settings)
    eos_id = adapted.eos_ids[0]
    limits = Limits(config.max_length, config.max_prompt, config.max_chars, config.too_long, config.system_prompt)
    _, held_out, _ = load_examples(map(parse_source, options.data or config.data), adapted.codec, limits, config.val_share)
    data = ValidationSet.build(held_out, options.examples, config.batch_size, eos_id, config.max_length)
    with torch.inference_mode():
        base.model.head.predicts_next_token = config.predicts_next_token
        levels = {"adapted": recovered(adapted, config, data, eos_id), "unadapted": recovered(base, config, data, eos_id)}
        base.model.head.predicts_next_token = False
    questions = questions_of(held_out, adapted, options.questions)
    judge, steps, few = Judge(base), options.steps, max(options.steps // 10, 1)
    asked = (options.tokens, config.batch_size)
    whole = texts_by_pass(adapted, questions, (few, steps), steps, *asked)
    short = texts_by_pass(adapted, questions, (few,), few, *asked)
    return {
        "held_out": len(held_out),
        "levels": levels,
        "passes": steps,
        "early_pass": few,
        "fluency": {
            "early_pass": judged(judge, questions, whole[few]),
            "last_pass": judged(judge, questions, whole[steps]),
            "short_decode": judged(judge, questions, short[few]),
        },
        "samples": [
            {"question": question, "early_pass": early, "last_pass": late}
            for question, early, late in zip(questions[:8], whole[few][:8], whole[steps][:8], strict=True)
        ],
    }


def verdict(found: dict[str, Any]) -> dict[str, bool]:
    """Say whether the two claims hold."""
    levels, fluency = found["levels"], found["fluency"]
    return {
        "validation_loss_fell": levels["adapted"]["loss"] < levels["unadapted"]["loss"],
        "last_pass_beats_the_early_one": fluency["last_pass"]["perplexity"] < fluency["early_pass"]["perplexity"],
    }


def _user_turn(rendered: str) -> str:
    """Return the last user turn of a conversation in the base's chat template."""
    return rendered.rpartition("<|im_start|>user\n")[2].partition("<|im_end|>")[0]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", type=Path, default=Path(__file__).with_name("simplex.toml"))
    parser.add_argument("--adapter", required=True)
    parser.add_argument("--base", default=None, help="base model (default: the config's)")
    parser.add_argument("--data", nargs="+", default=None, help="files (default: the config's)")
    parser.add_argument("--examples", type=int, default=64, help="held-out texts whose noised words are recovered")
    parser.add_argument("--questions", type=int, default=48, help="held-out questions that are answered")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args(arguments)
    found = evidence(options)
    holds = verdict(found)
    write_result(options.out, {"evidence": "simplex", **conditions(), **found, "holds": holds})
    return 0 if all(holds.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
