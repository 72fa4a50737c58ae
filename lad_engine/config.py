"""Settings with one owner each: `EngineConfig` is the operator's, `SamplingParams` the user's; both frozen, unknown names refused."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import ConfigError

ALIASES = {
    "num_steps": "steps",
    "num_inference_steps": "steps",
    "gen_length": "max_new_tokens",
    "max_tokens": "max_new_tokens",
    "noise_level": "noise_start",
}
SCHEDULES = ("exponential", "linear")
REMASKINGS = ("none", "random", "clusters", "bernoulli", "confidence", "weighted", "transfer")
RETENTIONS = ("none", "editable", "locked")
TOP_P_RULES = ("keep_crossing", "drop_crossing")
SELECTIONS = ("confidence", "random")
CONFIDENCES = ("kept", "full")
EOS_TREATMENTS = ("none", "low_confidence", "forbid")
DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class SamplingParams:
    """What the user asked of one decode (LAD: paper section 2.5 and appendix C, the authors' Space, and their later samplers).

    Length and loop:
        max_new_tokens: answer positions A laid out at once. steps: N forward passes at most.
        early_stop: stop after three identical predicted states. stop: strings that end the text (cut before them).
        tokens_per_step: growing window, MASKs appended each step (None: the whole answer at once).
        block_length: split the answer into blocks of this many tokens refined left to right (remasking="transfer" only).
    Token choice:
        temperature (0 is greedy), top_k (0 is all), top_p, top_p_rule: the token crossing p is kept (Hugging Face, DiffuLLaMA)
        or dropped (the LAD Space). eos_bias: added to the EOS logit negated, so positive means longer answers.
        suppress_tokens: ids never chosen besides the mask. confidence: probability among the "kept" candidates or the "full" softmax.
    Re-noising:
        noise_schedule, noise_start (eta0), noise_sharpness (s): eta(i), see schedules.masking.
        remasking: "none" self-refinement; "random" exactly n without replacement; "clusters" the Space's draw with replacement;
        "bernoulli" each position by itself; "confidence" the n least confident; "weighted" n without replacement with weight
        max(1-confidence, noise_clip); "transfer" the LLaDA budget (tokens commit, nothing is re-noised).
        permanent_unmask: a position once shown is never masked again (still re-predicted).
        retention: round((1-p)*A) positions are kept each step, "editable" or "locked"; selection: kept or transferred by
        confidence or at random. eos_split: share the re-noising budget between text and EOS positions in proportion.
        eos_treatment: for "transfer", EOS predictions commit last ("low_confidence") or never ("forbid").
        cfg_scale: w in l = l_u + (w + 1)(l_c - l_u); 0 is off.
    """

    max_new_tokens: int = 64
    steps: int = 16
    block_length: int | None = None
    tokens_per_step: int | None = None
    temperature: float = 1.0
    top_k: int = 1
    top_p: float = 1.0
    top_p_rule: str = "keep_crossing"
    confidence: str = "full"
    eos_bias: float = 0.0
    suppress_tokens: tuple[int, ...] = ()
    noise_schedule: str = "exponential"
    noise_start: float = 1.0
    noise_sharpness: float = 1.0
    noise_clip: float = 0.01
    cluster_size: float = 0.0
    remasking: str = "random"
    permanent_unmask: bool = False
    retention: str = "none"
    selection: str = "confidence"
    eos_split: bool = False
    eos_treatment: str = "none"
    cfg_scale: float = 0.0
    early_stop: bool = True
    stop: tuple[str, ...] = ()
    seed: int = 0
    profile: str = "custom"

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        for name in ("stop", "suppress_tokens"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        _check_sampling(self)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> SamplingParams:
        """Build from names, aliases accepted; an unknown name is an error that lists the close ones."""
        return cls(**canonical_names(values))

    def replace(self, **changes: Any) -> SamplingParams:
        """Return a copy with `changes` (canonical names or aliases)."""
        return dataclasses.replace(self, **canonical_names(changes))


@dataclass(frozen=True)
class EngineConfig:
    """What the operator chose: where the model runs, in which precision, with which ops.

    dtype "auto" is bfloat16 where the hardware computes in it, float32 elsewhere. merge False keeps the adapter's low-rank path
    beside the weights. any_base True accepts an adapter made for another base of the same shapes. batch_invariant None means on for
    CPU. ops is a backend name, or "op=backend,op=backend". mask_token is the piece that stands for a hidden position where no adapter
    names one (the authors' "MASK"). threads: CPU threads, None leaves torch's.
    """

    device: str = "auto"
    dtype: str = "auto"
    merge: bool = True
    any_base: bool = False
    batch_invariant: bool | None = None
    ops: str = "auto"
    mask_token: str = "MASK"
    threads: int | None = None

    def __post_init__(self) -> None:
        _one_of("dtype", self.dtype, DTYPES)
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"threads is {self.threads}, expected 1 or more.")


def canonical_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Resolve aliases of SamplingParams fields; raise ConfigError on an unknown name or on a name given twice."""
    known = {f.name for f in dataclasses.fields(SamplingParams)}
    out: dict[str, Any] = {}
    for name, value in values.items():
        canonical = ALIASES.get(name, name)
        if canonical not in known:
            close = difflib.get_close_matches(name, [*known, *ALIASES], n=3)
            hint = f"; did you mean {' or '.join(close)}?" if close else f"; accepted are {', '.join(sorted(known))}."
            raise ConfigError(f"{name} is not a sampling parameter{hint}")
        if canonical in out:
            raise ConfigError(f"{canonical} is given twice (also as {name}); give it once.")
        out[canonical] = value
    return out


def _check_sampling(p: SamplingParams) -> None:
    _at_least("max_new_tokens", p.max_new_tokens, 1)
    _at_least("steps", p.steps, 1)
    for name in ("block_length", "tokens_per_step"):
        if getattr(p, name) is not None:
            _at_least(name, getattr(p, name), 1)
    _at_least("top_k", p.top_k, 0)
    _between("temperature", p.temperature, 0.0, 100.0)
    _between("top_p", p.top_p, 0.0, 1.0)
    _between("noise_start", p.noise_start, 0.0, 1.0)
    _between("noise_sharpness", p.noise_sharpness, 1e-6, 1000.0)
    _between("noise_clip", p.noise_clip, 0.0, 1.0)
    _between("cluster_size", p.cluster_size, 0.0, 1.0)
    _between("eos_bias", p.eos_bias, -1e4, 1e4)
    _between("cfg_scale", p.cfg_scale, 0.0, 100.0)
    _at_least("seed", p.seed, 0)
    if p.seed >= 2**63:
        raise ConfigError(f"seed is {p.seed}, expected an integer below 2**63.")
    _one_of("top_p_rule", p.top_p_rule, TOP_P_RULES)
    _one_of("noise_schedule", p.noise_schedule, SCHEDULES)
    _one_of("remasking", p.remasking, REMASKINGS)
    _one_of("retention", p.retention, RETENTIONS)
    _one_of("selection", p.selection, SELECTIONS)
    _one_of("confidence", p.confidence, CONFIDENCES)
    _one_of("eos_treatment", p.eos_treatment, EOS_TREATMENTS)
    if p.remasking != "transfer" and p.block_length is not None:
        raise ConfigError('block_length is given, expected only with remasking="transfer"; use tokens_per_step for a growing window.')
    if p.remasking == "transfer" and (p.retention != "none" or p.permanent_unmask or p.tokens_per_step is not None):
        raise ConfigError('remasking="transfer" commits tokens for good, so retention, permanent_unmask and tokens_per_step do not apply.')
    if p.retention != "none" and p.remasking not in ("random", "confidence"):
        raise ConfigError(
            f'retention="{p.retention}" chooses the masked positions itself; remasking is "{p.remasking}", expected random or confidence.'
        )


def _at_least(name: str, value: Any, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ConfigError(f"{name} is {value!r}, expected an integer of at least {low}.")


def _between(name: str, value: Any, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or not low <= value <= high:
        raise ConfigError(f"{name} is {value!r}, expected a number from {low:g} to {high:g}.")


def _one_of(name: str, value: Any, accepted: tuple[str, ...]) -> None:
    if value not in accepted:
        raise ConfigError(f"{name} is {value!r}, expected one of {', '.join(accepted)}.")
