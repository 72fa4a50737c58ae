"""What a masked adaptation learnt: hidden words of held-out text recovered, and gaps filled better than by copying what stands beside them.

python -m bench.families.masked_evidence --adapter runs/masked/adapter.safetensors --out bench/results/masked_evidence.json

Held-out is what training held out: the same files, share and hash (`--config`, bench/families/masked.toml by default).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from bench.results import conditions, write_result
from lad_engine import Engine, Prompt
from lad_engine.evaluation.text_metrics import rouge_l, rouge_n
from lad_engine.training.config import TrainConfig
from lad_engine.training.data import Examples, Limits, load_examples, parse_source
from lad_engine.training.validation import ValidationSet, validate

MEASURES: dict[str, Callable[[str, str], float]] = {
    "rouge_1": lambda text, truth: rouge_n(text, truth, 1),
    "rouge_2": lambda text, truth: rouge_n(text, truth, 2),
    "rouge_l": rouge_l,
}
# Shorter answers have no middle worth hiding.
LEAST_WORDS = 9


def recovered(engine: Engine, data: ValidationSet) -> dict[str, float]:
    """Return loss and recovered share of masked answer tokens at 30, 60 and 100 %; the noise is the same for every model."""
    device = torch.device(engine.config.device)
    values = validate(engine.model, engine.ops, data, engine.mask_id, device)
    return {name.removeprefix("val_"): value for name, value in values.items() if "_masked_" in name}


def gaps(examples: Examples, engine: Engine, count: int) -> list[dict[str, str]]:
    """Hide the middle third of the words of held-out answers; returns the conversation's rendered prompt and the parts around the gap."""
    out = []
    for index in sorted(range(len(examples)), key=lambda i: int(examples.key[i])):
        words = engine.codec.decode(examples.answer(index)).split()
        text = engine.codec.decode(examples.prompt(index), skip_special=False)
        if len(words) < LEAST_WORDS or "[[" in text or any("[[" in word for word in words):
            continue
        a, b = len(words) // 3, 2 * len(words) // 3
        parts = {"left": " ".join(words[:a]), "gap": " " + " ".join(words[a:b]), "right": " " + " ".join(words[b:])}
        out.append({"prompt": text, **parts})
        if len(out) == count:
            break
    return out


def filled(engine: Engine, cases: Sequence[dict[str, str]], steps: int, batch_size: int) -> list[str]:
    """Return what the engine writes into each gap, whose length in tokens it is told (as the paper's infilling is)."""
    texts = []
    for start in range(0, len(cases), batch_size):
        batch = cases[start : start + batch_size]
        sizes = [len(engine.codec.encode_continuation(case["gap"])) for case in batch]
        prompts = [
            Prompt(text=case["prompt"], infill=f"{case['left']}[[{size}]]{case['right']}", format="raw")
            for case, size in zip(batch, sizes, strict=True)
        ]
        results = engine.generate(prompts, engine.sampling(steps=steps))
        for case, size, result in zip(batch, sizes, results, strict=True):
            before = len(engine.codec.encode_continuation(case["left"]))
            texts.append(engine.codec.decode(result.token_ids[before : before + size]))
    return texts


def copied(case: dict[str, str], side: str) -> str:
    """Return as many words of the context as the gap has: those before it, or those behind it."""
    size = len(case["gap"].split())
    words = case[side].split()
    return " ".join(words[-size:] if side == "left" else words[:size])


def scores(texts: Sequence[str], cases: Sequence[dict[str, str]]) -> dict[str, float]:
    """Return the mean of every measure against the hidden words."""
    return {
        name: sum(measure(text, case["gap"]) for text, case in zip(texts, cases, strict=True)) / max(len(cases), 1)
        for name, measure in MEASURES.items()
    }


def evidence(options: argparse.Namespace) -> dict[str, Any]:
    """Measure the adapted and the unadapted model on the same held-out text."""
    config = TrainConfig.load(options.config, {"base": options.base} if options.base else {})
    settings = {"device": options.device, "dtype": "float32", "mask_token": config.mask_token}
    adapted = Engine.load(config.base, adapter=options.adapter, **settings)
    plain = Engine.load(config.base, adapter=None, **settings)
    plain.model.head.predicts_next_token = config.predicts_next_token
    limits = Limits(config.max_length, config.max_prompt, config.max_chars, config.too_long, config.system_prompt)
    sources = [parse_source(text) for text in (options.data or config.data)]
    _, held_out, _ = load_examples(sources, adapted.codec, limits, config.val_share)
    eos_id = adapted.eos_ids[0]
    data = ValidationSet.build(held_out, options.examples, config.batch_size, eos_id, config.max_length)
    cases = gaps(held_out, adapted, options.examples)
    return {
        "held_out": len(held_out),
        "recovered": {"adapted": recovered(adapted, data), "unadapted": recovered(plain, data)},
        "gaps": len(cases),
        "infilling": {
            "adapted": scores(filled(adapted, cases, options.steps, config.batch_size), cases),
            "copy_left": scores([copied(case, "left") for case in cases], cases),
            "copy_right": scores([copied(case, "right") for case in cases], cases),
        },
    }


def verdict(found: dict[str, Any]) -> dict[str, bool]:
    """Say whether the two claims hold."""
    shares = {who: values["recovered_masked_30"] for who, values in found["recovered"].items()}
    infilling = found["infilling"]
    best = {name: max(infilling["copy_left"][name], infilling["copy_right"][name]) for name in MEASURES}
    return {
        "recovers_more_than_unadapted_at_30_percent": shares["adapted"] > shares["unadapted"],
        "fills_gaps_better_than_copying": all(infilling["adapted"][name] > best[name] for name in MEASURES),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", type=Path, default=Path(__file__).with_name("masked.toml"))
    parser.add_argument("--adapter", required=True)
    parser.add_argument("--base", default=None, help="base model (default: the config's)")
    parser.add_argument("--data", nargs="+", default=None, help="files (default: the config's)")
    parser.add_argument("--examples", type=int, default=64)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args(arguments)
    found = evidence(options)
    holds = verdict(found)
    write_result(options.out, {"evidence": "masked", **conditions(), **found, "holds": holds})
    return 0 if all(holds.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
