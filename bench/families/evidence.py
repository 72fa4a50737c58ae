"""What the evidence of the three adaptations shares: text no run has seen, paired comparisons with intervals, and the run's curve."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.results import make_result, write_result
from lad_engine.text.codec import TextCodec
from lad_engine.training.config import TrainConfig
from lad_engine.training.data import Examples, Limits, load_examples, parse_source
from lad_engine.training.validation import ValidationSet

RESAMPLES, SEED = 2000, 20250101
# (sum, count) of one example on one side of a comparison
Part = tuple[float, float]


def arguments_of(doc: str, config: str, examples: int) -> argparse.ArgumentParser:
    """Return the parser that the three scripts begin with; `doc` is the script's docstring."""
    parser = argparse.ArgumentParser(description=doc.split("\n")[0])
    parser.add_argument("--config", type=Path, default=Path(__file__).with_name(config), help="what the run was trained with")
    parser.add_argument("--base", default=None, help="base model (default: the config's)")
    parser.add_argument("--data", nargs="+", default=None, help="files (default: the config's)")
    parser.add_argument("--examples", type=int, default=examples, help="held-out texts whose tokens are recovered")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=None)
    return parser


def config_of(options: argparse.Namespace) -> TrainConfig:
    """Return the run's config with the options' base and data in place of its own."""
    given = {name: value for name in ("base", "data") if (value := getattr(options, name)) is not None}
    return TrainConfig.load(options.config, given)


def held_out(config: TrainConfig, codec: TextCodec) -> Examples:
    """Return what training held out, by the same files, share and hash, less every text whose question or answer it saw elsewhere.

    Raises:
        ValueError: nothing is left.
    """
    limits = Limits(config.max_length, config.max_prompt, config.max_chars, config.too_long, config.system_prompt)
    seen, kept, _ = load_examples(map(parse_source, config.data), codec, limits, config.val_share)
    prompts = {seen.prompt(index).tobytes() for index in range(len(seen))}
    answers = {seen.answer(index).tobytes() for index in range(len(seen))}
    # In the order of their keys, so that the first few are the same in every run.
    order = np.argsort(kept.key, kind="stable")
    fresh = [i for i in order if kept.prompt(i).tobytes() not in prompts and kept.answer(i).tobytes() not in answers]
    if not fresh:
        raise ValueError("evidence: no held-out text is left, expected some that training has not seen. Raise val_share.")
    rows = ([kept.prompt(i) for i in fresh], [kept.answer(i) for i in fresh], [int(kept.key[i]) for i in fresh])
    return Examples(*rows, [1.0] * len(fresh), [int(kept.label[i]) for i in fresh])


def one_by_one(examples: Examples, count: int, eos_id: int, max_length: int) -> ValidationSet:
    """Return the first `count` texts as batches of one, so that every text is one sample of a comparison."""
    return ValidationSet.build(examples, count, 1, eos_id, max_length)


def claim(what: str, ours: Sequence[Part], theirs: Sequence[Part], *, lower_is_better: bool = False) -> dict[str, Any]:
    """Compare two ratios sum / count over the same examples.

    Returns:
        what, value, against; gain (how much better value is) with low and high, its 95 % bootstrap interval over the examples; n;
        holds: the gain is above 0; is_clear: so is its whole interval.
    """
    sides = np.array([ours, theirs], dtype=np.float64).transpose(0, 2, 1)  # [side, sum or count, example]
    n = sides.shape[2]
    sign = -1.0 if lower_is_better else 1.0
    picks = np.random.Generator(np.random.PCG64(SEED)).integers(0, n, (RESAMPLES, n))
    sums = sides[:, :, picks].sum(3)  # [side, sum or count, resample]
    usable = (sums[:, 1] > 0).all(0)
    drawn = sign * (sums[0, 0, usable] / sums[0, 1, usable] - sums[1, 0, usable] / sums[1, 1, usable])
    value, against = (float(side[0].sum() / max(side[1].sum(), 1e-9)) for side in sides)
    gain, (low, high) = sign * (value - against), (float(bound) for bound in np.percentile(drawn, [2.5, 97.5]))
    figures = {"value": value, "against": against, "gain": gain, "low": low, "high": high}
    return {"what": what, **figures, "n": n, "holds": gain > 0, "is_clear": low > 0}


def exactly(what: str, equal: int, of: int) -> dict[str, Any]:
    """Claim that all of `of` cases are equal."""
    return {"what": what, "value": equal, "against": of, "n": of, "holds": equal == of, "is_clear": equal == of}


def curve(run: Path) -> list[dict[str, Any]]:
    """Return what a run's metrics.jsonl says of its losses: update, training loss and every validation loss there is."""
    path = run / "metrics.jsonl"
    if not path.is_file():
        return []
    lines: Iterable[dict[str, Any]] = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    kept = ({name: value for name, value in line.items() if name in ("step", "loss") or name.startswith("val_loss")} for line in lines)
    return [line for line in kept if len(line) > 1]


def finish(family: str, counted: str, run: Path, claims: list[dict[str, Any]], out: Path | None, **more: Any) -> int:
    """Write the result, its curve and beside it the run's plot; returns the exit status, 0 where every claim holds."""
    plot = run / "loss.png"
    if out is not None and plot.is_file():
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(plot, out.with_suffix(".png"))
        more["plot"] = out.with_suffix(".png").name
    row = {"family": family, "claims": claims, "curve": curve(run), **more}
    write_result(out, make_result("families_evidence", counted, [row]))
    return 0 if all(one["holds"] for one in claims) else 1
