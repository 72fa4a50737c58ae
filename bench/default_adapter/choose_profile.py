"""Measure decoding rules on held-out questions of the default adapter; the best becomes its profile.

    python -m bench.default_adapter.choose_profile --out bench/results/default_profile.json

Questions are the validation share of `train.toml` that have one-line answers. Reported per setting, means over the questions:
judge_nll, the base model's own causal loss per answer token (nats; fluent and on topic is low); repeats, the share of words equal to
the one before; overlap, word F1 with the reference answer; nfe, forward evaluations; tokens, answer length.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from statistics import mean

import torch

from bench.results import make_result, write_result
from lad_engine import Engine
from lad_engine.training.config import TrainConfig
from lad_engine.training.data import parse_source, read_rows, text_key, user_text

RECIPE = Path(__file__).with_name("train.toml")
KEYS = 2**62
CANDIDATES = {
    "paper": {"profile": "paper"},
    "paper, noise start 0.9": {"profile": "paper", "noise_start": 0.9},
    "self-refinement": {"profile": "paper", "remasking": "none"},
    "least confident, linear": {"profile": "paper", "remasking": "confidence", "noise_schedule": "linear"},
    "weighted": {"profile": "paper", "remasking": "weighted", "noise_start": 0.9},
    "retain locked, greedy": {"profile": "retain", "temperature": 0.0},
    "retain editable, greedy": {"profile": "retain", "temperature": 0.0, "retention": "editable"},
    "transfer": {"profile": "llada"},
    "transfer, blocks of 8": {"profile": "llada", "block_length": 8},
}


def held_out(count: int) -> list[tuple[str, str]]:
    """Return (question, answer) pairs of the recipe's validation share, in a fixed order."""
    config = TrainConfig.load(RECIPE, {})
    rows = [row for source in config.data for row in read_rows(parse_source(source))]
    chosen = sorted((text_key(row), user_text(row), row["output"]) for row in rows if text_key(row) / KEYS < config.val_share)
    return [(question, answer) for _, question, answer in chosen][:count]


@torch.inference_mode()
def judge_nll(judge: Engine, question: str, answer: str) -> float:
    """Return the base model's mean causal loss on the answer's tokens behind the question, in nats."""
    turns = [{"role": "system", "content": ""}, {"role": "user", "content": question}]
    prompt, ids = judge.codec.encode(judge.codec.render_chat(turns)), judge.codec.encode(answer)
    if not ids:
        return float("nan")
    canvas = torch.tensor([prompt + ids])
    logits = judge.model.head.logits(judge.model.transformer(canvas, is_causal=True)[0, len(prompt) - 1 : -1])
    return float(torch.nn.functional.cross_entropy(logits, torch.tensor(ids)))


def overlap(answer: str, reference: str) -> float:
    """Return the F1 of the two answers' words."""
    mine, theirs = Counter(words(answer)), Counter(words(reference))
    common = (mine & theirs).total()
    return 2 * common / (mine.total() + theirs.total()) if common else 0.0


def repeats(answer: str) -> float:
    """Return the share of words that equal the one before."""
    run = words(answer)
    return mean(a == b for a, b in pairwise(run)) if len(run) > 1 else 0.0


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9']+", text.lower())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--adapter", default="default")
    parser.add_argument("--questions", type=int, default=24)
    parser.add_argument("--steps", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--only", nargs="+", choices=list(CANDIDATES), default=list(CANDIDATES))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    engine, judge = Engine.load(adapter=options.adapter), Engine.load(adapter=None, mask_token="<empty_output>")
    pairs = held_out(options.questions)
    rows = []
    for name in options.only:
        for steps in options.steps:
            settings = {key: value for key, value in CANDIDATES[name].items() if key != "profile"}
            params = engine.sampling(CANDIDATES[name]["profile"], max_new_tokens=32, steps=steps, **settings)
            results = engine.generate([question for question, _ in pairs], params)
            losses = [judge_nll(judge, question, result.text) for (question, _), result in zip(pairs, results, strict=True)]
            rows.append(
                {
                    "model": engine.facts.name,
                    "dtype": engine.config.dtype,
                    "batch": len(pairs),
                    "setting": name,
                    "steps": steps,
                    "nfe": mean(result.nfe for result in results),
                    "judge_nll": mean(loss for loss in losses if loss == loss),
                    "empty": sum(loss != loss for loss in losses),
                    "repeats": mean(repeats(result.text) for result in results),
                    "overlap": mean(overlap(result.text, answer) for result, (_, answer) in zip(results, pairs, strict=True)),
                    "tokens": mean(result.tpf * result.nfe for result in results),
                }
            )
            print(rows[-1], file=sys.stderr, flush=True)
    facts = {"adapter": engine.adapter_facts.name, "adapter_updates": engine.adapter_facts.extra.get("updates"), "questions": len(pairs)}
    reference = mean(judge_nll(judge, question, answer) for question, answer in pairs)
    counted = "Quality of whole answers of at most 32 tokens; means over the questions. No time was measured."
    result = make_result("default_profile", counted, rows, max_new_tokens=32, reference_judge_nll=reference, **facts)
    write_result(options.out, result)


if __name__ == "__main__":
    main()
