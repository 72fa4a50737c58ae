"""The flags of `python -m lad_engine.generate`; every field of SamplingParams is one, with its aliases."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from ..config import ALIASES, CHOICES, DRIVERS, DTYPES, PRECISIONS, SamplingParams, check_setting
from ..errors import ConfigError

# One sentence per field of SamplingParams, `profile` excepted: it has a flag of its own.
SAMPLING_HELP = {
    "max_new_tokens": "answer positions laid out at once",
    "steps": "denoising steps, at most",
    "block_length": "blocks of this many tokens, refined left to right (remasking transfer)",
    "tokens_per_step": "growing window: positions added each step",
    "temperature": "0 is greedy",
    "top_k": "candidates per position, 0 is all",
    "top_p": "probability mass of the candidates",
    "top_p_rule": "whether the token that crosses top-p is kept",
    "confidence": "probability among the kept candidates or in the full softmax",
    "eos_bias": "positive for longer answers",
    "suppress_tokens": "token ids never chosen, as 5,17",
    "noise_schedule": "how the noise falls from step to step",
    "noise_start": "share of the answer masked at first, eta0",
    "noise_sharpness": "how fast an exponential schedule falls",
    "noise_clip": "least weight of a confident token in weighted re-noising",
    "cluster_size": "how much the masks of clustered re-noising stick together",
    "remasking": "which positions become noise again",
    "permanent_unmask": "a shown position is never masked again",
    "retention": "what happens to the positions kept each step",
    "selection": "keep or transfer by confidence or at random",
    "eos_split": "share the re-noising between text and end tokens in proportion",
    "eos_treatment": "end tokens count as the least sure, or are never chosen",
    "cfg_scale": "classifier-free guidance, 0 is off",
    "reveal": "which hidden positions a masked model reveals",
    "threshold": "also make final what is at least this sure (remasking or reveal transfer, reveal maskgit_plus)",
    "frequency_penalty": "what a logit loses each time its token is final in the answer (remasking transfer)",
    "presence_penalty": "what it loses once for that (remasking transfer)",
    "factor": "also reveal the n surest while the k-th is at least 1 - X / (k + 1) sure",
    "reveal_temperature": "noise on the order of revealing, 0 is none",
    "time_floor": "the time at which the schedule of origin, maskgit_plus, topk_margin and entropy ends",
    "transition": "how a simplex model noises its tokens again",
    "reward_scale": "how far a reward model moves the logits each step, 0 is off",
    "reward_steps": "gradient steps on the logits each step",
    "reward_temperature": "temperature of the softmax the reward model reads",
    "reward_hard": "the reward model reads the most probable tokens alone",
    "reward_rule": "judge the last token of the answer, or as TESS 2's code does",
    "solver": "how a latent ODE is integrated; fehlberg2, adaptive_heun and bosh3 choose their own steps",
    "flow_end": "the time at which a latent ODE ends",
    "flow_temperature": "of the velocity's target at t = 0; 0 takes the most probable token",
    "flow_power": "how fast that falls, (1 - t / end)^X; 0 keeps it",
    "flow_estimate": "the velocity's target: a token's vector, or the average one",
    "flow_tolerance": "error per step of a solver that chooses its own",
    "flow_label": "class of the request, for a checkpoint trained with labels",
    "early_stop": "stop after three identical states",
    "stop": "text that ends the answer; may be given several times",
    "seed": "random seed",
}


class SentenceParser(argparse.ArgumentParser):
    """Raises ConfigError, one sentence, where argparse would print its usage and exit."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message[:1].lower()}{message[1:].rstrip('.')}. See --help for what is accepted.")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; imports neither torch nor transformers, so --help is immediate."""
    parser = SentenceParser(
        prog="python -m lad_engine.generate",
        usage="python -m lad_engine.generate PROMPT [options]",
        description="Answer a prompt with a diffusion language model, refining the whole answer at once.",
        allow_abbrev=False,
    )
    _add_request(parser.add_argument_group("request"))
    decoding = parser.add_argument_group("decoding", "unset means: as the profile says")
    decoding.add_argument("--profile", metavar="NAME", help="named set of the settings below (default: the adapter's), see --list-profiles")
    add_sampling(decoding)
    _add_engine(parser.add_argument_group("engine"))
    _add_output(parser.add_argument_group("output"))
    return parser


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the arguments; ConfigError (one sentence) on an unknown flag or an unreadable value. `--help` exits as usual."""
    parser = build_parser()
    arguments, unknown = parser.parse_known_args(argv)
    for word in unknown:
        if word.startswith("-"):
            flag = word.partition("=")[0]
            known = [option for action in parser._actions for option in action.option_strings]
            close = difflib.get_close_matches(flag, known, n=2)
            advice = f"Did you mean {' or '.join(close)}?" if close else "See --help for the options."
            raise ConfigError(f"{flag} is not an option. {advice}")
        raise ConfigError(f"{word!r} is a second prompt, expected one. Quote the prompt, or give a file with --prompts.")
    return arguments


def sampling_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the SamplingParams fields given on the command line; ConfigError where one of them cannot hold for any profile."""
    given = {name: getattr(arguments, name) for name in SAMPLING_HELP if hasattr(arguments, name)}
    for name, value in given.items():
        # Whether they hold beside the profile's is known once it is: the adapter's own after loading.
        check_setting(name, value)
    return given


def as_flag(name: str, value: Any) -> str:
    """Return how a sampling setting is written on the command line."""
    flag = name.replace("_", "-")
    return f"--{'' if value else 'no-'}{flag}" if isinstance(value, bool) else f"--{flag} {value}"


def _add_request(group: argparse._ArgumentGroup) -> None:
    group.add_argument("prompt", nargs="?", metavar="PROMPT", help="the question; - reads standard input")
    group.add_argument("--prompts", metavar="FILE", help="a batch: one prompt per line, or JSON Lines (prompt or messages, system, ...)")
    group.add_argument("--batch-size", type=_integer, default=8, metavar="N", help="prompts decoded together (default 8)")
    group.add_argument("--system", metavar="TEXT", help="system prompt (default: the adapter's, else the template's)")
    group.add_argument("--draft", metavar="TEXT", help="an answer to refine; use with --noise-start below 1")
    group.add_argument("--infill", metavar="TEXT", help="an answer with gaps: [[8]] opens 8 positions, [[8:words]] starts them from words")
    group.add_argument("--format", metavar="{chat,space,raw}", help="prompt format (default: the adapter's)")


def add_sampling(group: argparse._ArgumentGroup) -> None:
    """Give a group one flag per field of SamplingParams; what is not given stays out of the namespace."""
    aliases = {name: [alias for alias, canonical in ALIASES.items() if canonical == name] for name in SAMPLING_HELP}
    for field in dataclasses.fields(SamplingParams):
        if field.name == "profile":
            continue
        flags = [f"--{name.replace('_', '-')}" for name in (field.name, *aliases[field.name])]
        # SUPPRESS keeps what was not given out of the namespace, so the profile's value stands.
        common: dict[str, Any] = {"dest": field.name, "default": argparse.SUPPRESS, "help": SAMPLING_HELP[field.name]}
        if field.type == "bool":
            group.add_argument(*flags, action=argparse.BooleanOptionalAction, **common)
        elif field.type == "tuple[str, ...]":
            group.add_argument(*flags, action="append", metavar="TEXT", **common)
        else:
            choices = CHOICES.get(field.name)
            metavar = f"{{{','.join(choices)}}}" if choices else "X" if field.type.startswith("float") else "N"
            group.add_argument(*flags, type=_READERS[field.type], metavar=metavar, **common)


def _add_engine(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--model", metavar="PATH", help="folder, hub id or GGUF file (default: the embedded SmolLM2-135M-Instruct)")
    group.add_argument("--adapter", default="default", metavar="PATH", help="adapter folder or file, default, or none")
    group.add_argument("--autoregressive", action="store_true", help="decode token by token with the base alone, for comparison")
    group.add_argument("--mask-token", default="MASK", metavar="TEXT", help="mask token where there is no adapter (default MASK)")
    group.add_argument("--reward-model", metavar="DIR", help="sequence classifier that guides a simplex model (--reward-scale)")
    group.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:N")
    group.add_argument("--dtype", default="auto", metavar=f"{{{','.join(DTYPES)}}}", help="dtype of weights and rows")
    group.add_argument(
        "--precision",
        default="auto",
        metavar=f"{{{','.join(PRECISIONS)}}}",
        help="8-bit projections: fp8 (sm_89 or newer), int8, or int8_weights to save memory (default auto: none)",
    )
    group.add_argument(
        "--driver", default="auto", metavar=f"{{{','.join(DRIVERS)}}}", help="call every step, replay a captured one, or launch one graph"
    )
    group.add_argument("--ops", default="auto", metavar="SPEC", help="auto, a backend, or attention=reference,renoise=cpu")
    group.add_argument("--threads", type=_integer, metavar="N", help="CPU threads")
    group.add_argument("--no-merge", dest="merge", action="store_false", help="keep the adapter beside the weights")
    group.add_argument("--any-base", action="store_true", help="accept an adapter made for another base of the same shapes")
    group.add_argument(
        "--batch-invariant",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="the same tokens alone and in any batch (default: on for CPU)",
    )


def _add_output(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--show-steps", action="store_true", help="print the canvas after every step")
    group.add_argument("--json", action="store_true", help="print one JSON object per answer")
    group.add_argument("--trace", metavar="FILE", help="write the refinement as JSON Lines")
    group.add_argument("--replay", metavar="FILE", help="play a trace again; needs no model")
    group.add_argument("--replay-speed", type=_number, default=1.0, metavar="X", help="2 plays twice as fast (default 1)")
    group.add_argument("--verbose", action="store_true", help="say which op runs where and why, and how long loading took")
    group.add_argument("--drift-report", action="store_true", help="compare merged with unmerged weights on the probe set")
    group.add_argument(
        "--agreement-report", action="store_true", help="compare --precision with the weights as they are, on the prompts or the probe set"
    )
    group.add_argument("--list-profiles", action="store_true", help="print the named profiles and their settings")


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def _optional_integer(text: str) -> int | None:
    return None if text.lower() == "none" else _integer(text)


def _optional_number(text: str) -> float | None:
    return None if text.lower() == "none" else _number(text)


def _integers(text: str) -> tuple[int, ...]:
    return tuple(_integer(part) for part in text.split(",") if part.strip())


_READERS: dict[Any, Callable[[str], Any]] = {
    "int": _integer,
    "int | None": _optional_integer,
    "float": _number,
    "float | None": _optional_number,
    "str": str,
    "tuple[int, ...]": _integers,
}
