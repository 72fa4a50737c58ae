"""What a masked adaptation learnt: hidden words of held-out text recovered, and gaps filled better than by copying what stands beside them.

python -m bench.families.masked_evidence --adapter runs/masked/adapter.safetensors --out bench/results/masked_evidence.json

Minutes on one core. The exit status is 0 where every claim holds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.families.evidence import Part, arguments_of, claim, config_of, finish, held_out, one_by_one
from lad_engine import Engine, Prompt
from lad_engine.evaluation.text_metrics import rouge_l, rouge_n
from lad_engine.training.data import Examples
from lad_engine.training.validation import ValidationSet, score_level

MEASURES: dict[str, Callable[[str, str], float]] = {
    "rouge_1": lambda text, truth: rouge_n(text, truth, 1),
    "rouge_2": lambda text, truth: rouge_n(text, truth, 2),
    "rouge_l": rouge_l,
}
# Shorter answers have no middle worth hiding.
LEAST_WORDS = 9
# Share of the answers' tokens that is hidden.
HIDDEN = 0.3
COUNTED = (
    "Held-out: validation texts of the run's own data, by hash of the text, less any whose question or answer training saw. Recovered: "
    "share of hidden answer tokens that are the model's most probable one, 30 % hidden, the same positions for every model. Unadapted: "
    "the base's own weights, once reading both ways as the adapted model does, once causally as it was trained. Gaps: the middle third of "
    "an answer's words, its length in tokens told, prompt and both sides given; copying: as many words from the better of both sides."
)


class CausalReading:
    """A language model whose positions see only what stands before them."""

    def __init__(self, model: Any) -> None:
        self._model, self.head = model, model.head

    def hidden(self, ids: Tensor) -> Tensor:
        return self._model.transformer(ids, is_causal=True)


@torch.inference_mode()
def recovered(model: Any, engine: Engine, data: ValidationSet) -> list[Part]:
    """Return (tokens recovered, tokens hidden) of every text."""
    device = torch.device(engine.config.device)
    totals = [score_level(model, engine.ops, batch, engine.mask_id, device, "mask_only", HIDDEN) for batch in data.batches]
    return [(float(total[1]), float(total[2])) for total in totals]


def gaps(examples: Examples, engine: Engine, count: int) -> list[dict[str, str]]:
    """Hide the middle third of the words of held-out answers; returns the conversation's rendered prompt and the parts around the gap."""
    out = []
    for index in range(len(examples)):
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


def scores(measure: str, texts: Sequence[str], cases: Sequence[dict[str, str]]) -> list[Part]:
    """Return one measure against the hidden words, per case."""
    return [(MEASURES[measure](text, case["gap"]), 1.0) for text, case in zip(texts, cases, strict=True)]


def fill_claims(texts: Sequence[str], cases: Sequence[dict[str, str]]) -> list[dict[str, Any]]:
    """Compare what was written with copying from whichever side scores higher, measure by measure."""
    out = []
    for name in MEASURES:
        sides = [scores(name, [copied(case, side) for case in cases], cases) for side in ("left", "right")]
        best = max(sides, key=lambda side: sum(value for value, _ in side))
        out.append(claim(f"gap filled against copying, {name.replace('_', '-').upper()}", scores(name, texts, cases), best))
    return out


def evidence(options: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the claims, measured on the same held-out text, and what else is worth keeping."""
    config = config_of(options)
    settings = {"device": options.device, "dtype": "float32", "mask_token": config.mask_token}
    adapted = Engine.load(config.base, adapter=options.adapter, **settings)
    plain = Engine.load(config.base, adapter=None, **settings)
    plain.model.head.predicts_next_token = config.predicts_next_token
    examples = held_out(config, adapted.codec)
    data = one_by_one(examples, options.examples, adapted.eos_ids[0], config.max_length)
    cases = gaps(examples, adapted, options.gaps)
    ours = recovered(adapted.model, adapted, data)
    claims = [
        claim("hidden tokens recovered at 30 %, against the unadapted model", ours, recovered(plain.model, plain, data)),
        claim("the same against the unadapted model read causally", ours, recovered(CausalReading(plain.model), plain, data)),
    ]
    texts = filled(adapted, cases, options.steps, config.batch_size)
    claims += fill_claims(texts, cases)
    samples = [{**case, "written": text} for case, text in zip(cases, texts, strict=True)][:8]
    return claims, {"held_out": len(examples), "steps": options.steps, "samples": samples}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = arguments_of(__doc__, "masked.toml", 64)
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--gaps", type=int, default=40, help="gaps to fill")
    parser.add_argument("--steps", type=int, default=8, help="passes of a decode")
    options = parser.parse_args(arguments)
    claims, more = evidence(options)
    return finish("masked", COUNTED, options.adapter.parent, claims, options.out, **more)


if __name__ == "__main__":
    sys.exit(main())
