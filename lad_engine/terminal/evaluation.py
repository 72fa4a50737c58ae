"""The flags of `python -m lad_engine.evaluate`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from ..config import DTYPES, PRECISIONS
from ..errors import ConfigError
from .arguments import SentenceParser, add_sampling

STEP_COUNTS = "8,16,32,64"


def parse_evaluation(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the arguments; ConfigError (one sentence) where one cannot be read or two exclude each other. `--help` exits as usual."""
    parser = SentenceParser(
        prog="python -m lad_engine.evaluate",
        usage="python -m lad_engine.evaluate --tasks NAME,... --out results.json [options]\n"
        "       python -m lad_engine.evaluate --tune-profile --prompts FILE [options]\n"
        "       python -m lad_engine.evaluate --samples --prompts FILE --out answers.txt [options]",
        description="Measure a diffusion language model beside its autoregressive base, or search for an adapter's decode profile.",
        allow_abbrev=False,
    )
    what = parser.add_argument_group("what")
    what.add_argument("--tasks", type=_names, default=(), metavar="NAME,...", help="tasks; open measures answers to --prompts; all")
    what.add_argument("--tune-profile", action="store_true", help="search the fewest passes within --floor of the best, save the profile")
    what.add_argument("--samples", action="store_true", help="write the answers to --prompts as text")
    what.add_argument("--data", metavar="DIR", help="folder of sets as JSON Lines (default: the Hugging Face hub)")
    what.add_argument("--prompts", metavar="FILE", help="open prompts, one per line")
    what.add_argument("--limit", type=int, metavar="N", help="examples per task, always the same ones (default: all)")
    what.add_argument("--out", metavar="FILE", help="JSON of all conditions; table, plots and finished examples are kept beside it")
    what.add_argument("--floor", type=_percent, default=0.02, metavar="P%", help="quality given up for fewer passes (default 2%%)")
    how = parser.add_argument_group("conditions")
    how.add_argument(
        "--profile", default="task", metavar="NAME", help="task (the paper's settings per task, the default), adapter, or a profile's name"
    )
    how.add_argument("--step-counts", type=_counts, default=_counts(STEP_COUNTS), metavar="N,...", help=f"for open ({STEP_COUNTS})")
    how.add_argument("--baselines", type=_names, default=("greedy", "sampled"), metavar="NAME,...", help="greedy, sampled or none")
    how.add_argument("--scoring", type=_names, default=("generation", "likelihood"), metavar="NAME,...", help="generation, likelihood")
    how.add_argument("--copies", type=int, default=8, metavar="N", help="masked copies per option (default 8)")
    how.add_argument("--judge", metavar="PATH", help="causal model that finds perplexity (default: the base)")
    how.add_argument("--allow-code-execution", action="store_true", help="let humaneval run what the model wrote, in a sandbox")
    how.add_argument("--batch-size", type=int, default=8, metavar="N", help="examples decoded together (default 8)")
    engine = parser.add_argument_group("engine")
    engine.add_argument("--model", metavar="PATH", help="folder, hub id or GGUF file (default: the embedded SmolLM2-135M-Instruct)")
    engine.add_argument("--adapter", default="default", metavar="PATH", help="adapter folder or file, default, or none")
    engine.add_argument("--any-base", action="store_true", help="accept an adapter made for another base of the same shapes")
    engine.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:N")
    engine.add_argument("--dtype", default="auto", metavar=f"{{{','.join(DTYPES)}}}", help="dtype of weights and rows")
    engine.add_argument("--precision", default="auto", metavar=f"{{{','.join(PRECISIONS)}}}", help="8-bit projections")
    engine.add_argument("--ops", default="auto", metavar="SPEC", help="auto, a backend, or attention=reference,renoise=cpu")
    engine.add_argument("--threads", type=int, metavar="N", help="CPU threads")
    add_sampling(parser.add_argument_group("decoding", "over the profile's; unset means as it says"))
    return _checked(parser.parse_args(argv))


def _checked(arguments: argparse.Namespace) -> argparse.Namespace:
    jobs = [bool(arguments.tasks), arguments.tune_profile, arguments.samples]
    if sum(jobs) != 1:
        raise ConfigError("evaluate: expected one of --tasks, --tune-profile and --samples. Give one; see --help.")
    if not arguments.tune_profile and arguments.out is None:
        raise ConfigError("evaluate: --out is not given, expected a file to write to. Give --out results.json.")
    if arguments.out is not None:
        _check_place(Path(arguments.out))
    if (arguments.tune_profile or arguments.samples or "open" in arguments.tasks) and arguments.prompts is None:
        raise ConfigError("evaluate: --prompts is not given, expected a file with one prompt per line. Give --prompts FILE.")
    for name, accepted in (("baselines", ("greedy", "sampled", "none")), ("scoring", ("generation", "likelihood"))):
        for value in getattr(arguments, name):
            if value not in accepted:
                raise ConfigError(f"{name} is {value!r}, expected {', '.join(accepted)}.")
    for name in ("limit", "copies", "batch_size"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ConfigError(f"{name.replace('_', '-')} is {value}, expected 1 or more.")
    return arguments


def _check_place(out: Path) -> None:
    """Raise ConfigError where nothing can be written at `out`: hours of measuring come before it is."""
    if not out.name or out.is_dir():
        raise ConfigError(f"out: {out} is a folder, expected a file. Name a file in it.")
    folder = next(parent for parent in out.absolute().parents if parent.exists())
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise ConfigError(f"out: nothing can be written in {folder}, expected a folder that can be. Choose another --out.")


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def _counts(text: str) -> tuple[int, ...]:
    parts = _names(text)
    if not parts or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers like 8,16,32")
    return tuple(map(int, parts))


def _percent(text: str) -> float:
    try:
        value = float(text.removesuffix("%")) / 100.0
    except ValueError:
        value = -1.0
    if not 0.0 <= value < 1.0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share below 100 % like 2%")
    return value
