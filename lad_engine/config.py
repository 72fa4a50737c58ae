"""Settings with one owner each: `EngineConfig` is the operator's, `SamplingParams` the user's; both frozen, unknown names refused."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Mapping
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
REMASKINGS = ("none", "random", "clusters", "bernoulli", "confidence", "weighted", "transfer")
# DiffuLLaMA's two samplers, Dream's four rules, and LLaDA's budget per block.
REVEALS = ("random", "confidence", "origin", "maskgit_plus", "topk_margin", "entropy", "transfer")
# Rules whose every reveal is drawn before the first step.
PREDRAWN = ("random", "origin")
SOLVERS = ("euler", "midpoint", "heun2", "heun3", "rk4", "fehlberg2", "adaptive_heun", "bosh3")
ADAPTIVE_SOLVERS = SOLVERS[5:]
DTYPES = ("auto", "float32", "bfloat16", "float16")
DRIVERS = ("auto", "eager", "replay", "loop")
PRECISIONS = ("auto", "fp8", "int8", "int8_weights")
# What a sampling parameter may be whatever the others are: named values, a smallest integer, a range.
CHOICES = {
    "noise_schedule": ("exponential", "linear"),
    "remasking": REMASKINGS,
    "retention": ("none", "editable", "locked"),
    "top_p_rule": ("keep_crossing", "drop_crossing"),
    "selection": ("confidence", "random"),
    "confidence": ("kept", "full"),
    "eos_treatment": ("none", "low_confidence", "forbid"),
    "reveal": REVEALS,
    "solver": SOLVERS,
    "flow_estimate": ("sample", "average", "average_normalised", "average_nearest"),
    "transition": ("ddpm", "ddim"),
    "reward_rule": ("last_token", "reference"),
}
LEAST = {
    **dict.fromkeys(("max_new_tokens", "steps", "block_length", "tokens_per_step", "reward_steps"), 1),
    **dict.fromkeys(("top_k", "flow_label", "seed"), 0),
}
# Tables hold a row per step and are made before the first one; the others are numbers a device's tables can hold.
MOST = {**dict.fromkeys(LEAST, 2**31 - 1), "steps": 2**16, "reward_steps": 1000, "seed": 2**63 - 1}
# torch starts as many as it is told to.
MOST_THREADS = 1024
RANGES = {
    "temperature": (0.0, 100.0),
    "top_p": (0.0, 1.0),
    "noise_start": (0.0, 1.0),
    "noise_sharpness": (1e-6, 1000.0),
    "noise_clip": (0.0, 1.0),
    "cluster_size": (0.0, 1.0),
    "eos_bias": (-1e4, 1e4),
    "cfg_scale": (0.0, 100.0),
    "threshold": (0.0, 1.0),
    "frequency_penalty": (-2.0, 2.0),
    "presence_penalty": (-2.0, 2.0),
    "factor": (0.0, 1000.0),
    "reveal_temperature": (0.0, 100.0),
    "time_floor": (0.0, 0.5),
    "flow_end": (0.0, 1.0),
    "flow_temperature": (0.0, 100.0),
    "flow_power": (0.0, 100.0),
    "flow_tolerance": (1e-9, 1.0),
    "reward_scale": (0.0, 1e6),
    "reward_temperature": (1e-3, 100.0),
}
MAY_BE_NONE = ("block_length", "tokens_per_step", "threshold", "factor", "flow_label")
RENOISING = tuple(name for name in REMASKINGS if name not in ("none", "transfer"))
# What the autoregressive baseline reads, and what it does where nothing is asked for: greedy, over the whole vocabulary.
READ_AUTOREGRESSIVELY = (
    *("max_new_tokens", "temperature", "top_k", "top_p", "top_p_rule"),
    *("confidence", "eos_bias", "suppress_tokens", "stop", "seed"),
)
AUTOREGRESSIVE_DEFAULTS = {"temperature": 0.0, "top_k": 0, "profile": "autoregressive"}


def _transfers(p: Mapping[str, Any]) -> bool:
    return "transfer" in (p["remasking"], p["reveal"])


def _is_sure(p: Mapping[str, Any]) -> bool:
    return p["reveal"] == "maskgit_plus" or (p["reveal"] == "transfer" and p["selection"] == "confidence")


def _may_have_threshold(p: Mapping[str, Any]) -> bool:
    return (_is_sure(p) or (p["remasking"] == "transfer" and p["selection"] == "confidence")) and p["factor"] is None


# Settings that only some rules read: whether anything reads them under the others, and what would.
READ_WITH: dict[str, tuple[Callable[[Mapping[str, Any]], bool], str]] = {
    "block_length": (_transfers, "remasking transfer (tokens_per_step makes a growing window), or reveal transfer"),
    "noise_schedule": (lambda p: p["remasking"] in RENOISING, "a remasking that puts noise back"),
    "noise_sharpness": (
        lambda p: p["remasking"] in RENOISING and p["noise_schedule"] == "exponential",
        "noise_schedule exponential and a remasking that puts noise back",
    ),
    "noise_clip": (lambda p: p["remasking"] == "weighted", "remasking weighted"),
    "cluster_size": (lambda p: p["remasking"] == "clusters", "remasking clusters"),
    "permanent_unmask": (lambda p: p["remasking"] in RENOISING, "a remasking that puts noise back"),
    "selection": (lambda p: p["retention"] != "none" or _transfers(p), "retention or remasking transfer, or reveal transfer"),
    "eos_split": (
        lambda p: p["retention"] != "none" or p["remasking"] in ("random", "confidence", "weighted"),
        "retention or remasking random, confidence or weighted",
    ),
    "eos_treatment": (
        lambda p: (
            p["eos_treatment"] == "forbid" or p["retention"] != "none" or _transfers(p) or p["remasking"] in ("bernoulli", "confidence")
        ),
        "retention or remasking bernoulli, confidence or transfer, or reveal transfer (forbid with any)",
    ),
    "threshold": (_may_have_threshold, "remasking or reveal transfer by confidence, or reveal maskgit_plus, without factor"),
    **{
        name: (lambda p: p["remasking"] == "transfer", "remasking transfer, under which tokens are final")
        for name in ("frequency_penalty", "presence_penalty")
    },
    "factor": (_is_sure, "reveal transfer by confidence or maskgit_plus"),
    "reveal_temperature": (
        lambda p: p["reveal"] in ("maskgit_plus", "topk_margin", "entropy") and p["threshold"] is None and p["factor"] is None,
        "reveal maskgit_plus, topk_margin or entropy, without threshold and factor",
    ),
    "time_floor": (
        lambda p: p["reveal"] in ("origin", "maskgit_plus", "topk_margin", "entropy"),
        "reveal origin, maskgit_plus, topk_margin or entropy",
    ),
    "flow_power": (lambda p: p["flow_temperature"] > 0, "flow_temperature above 0"),
    "flow_tolerance": (lambda p: p["solver"] in ADAPTIVE_SOLVERS, f"solver {', '.join(ADAPTIVE_SOLVERS)}"),
    **{
        name: (lambda p: p["reward_scale"] > 0, "reward_scale above 0")
        for name in ("reward_steps", "reward_temperature", "reward_hard", "reward_rule")
    },
}


@dataclass(frozen=True)
class SamplingParams:
    """What the user asked of one decode (LAD: paper section 2.5 and appendix C, the authors' Space, and their later samplers).

    Length and loop:
        max_new_tokens: answer positions A laid out at once. steps: N forward passes at most.
        early_stop: stop after three identical predicted states; with remasking="transfer", once all in front of an end of text is final.
        stop: strings that end the text (cut before them).
        tokens_per_step: growing window, MASKs appended each step (None: the whole answer at once).
        block_length: split the answer into blocks of this many tokens refined left to right (remasking="transfer" only); they are wider,
        two steps for each, where there are fewer steps than blocks.
    Token choice:
        temperature (0 is greedy), top_k (0 is all), top_p, top_p_rule: the token crossing p is kept (Hugging Face, DiffuLLaMA)
        or dropped (the LAD Space). eos_bias: added to the EOS logit negated, so positive means longer answers.
        suppress_tokens: ids never chosen besides the mask. confidence: probability among the "kept" candidates or the "full" softmax.
    Re-noising:
        noise_schedule, noise_start (eta0), noise_sharpness (s): eta(i), see schedules.masking.
        remasking: "none" self-refinement; "random" exactly n without replacement; "clusters" the Space's draw with replacement;
        "bernoulli" each position by itself; "confidence" the n least confident; "weighted" n without replacement with weight
        max(1-confidence, noise_clip); "transfer" the LLaDA budget (tokens commit, nothing is re-noised).
        frequency_penalty, presence_penalty: with "transfer", what a logit loses for each time its token is final in the answer already,
        and once for its being there (OpenAI's; end tokens, and what was given, do not count).
        threshold: with "transfer", also commit what is at least this sure; a block that is done early leaves its steps to the next.
        permanent_unmask: a position once shown is never masked again (still re-predicted).
        retention: round((1-p)*A) positions are kept each step, "editable" or "locked", all others masked; selection: kept or
        transferred by confidence or at random. eos_split: share the budget between text and EOS positions in proportion.
        eos_treatment: EOS predictions count as the least sure ("low_confidence") or are never made ("forbid").
        cfg_scale: w in l = l_u + (w + 1)(l_c - l_u); 0 is off.
    Revealing (masked diffusion: a revealed position is final):
        reveal: "random" DiffuLLaMA's, every position at a step drawn up front; "confidence" DiffuLLaMA's, the least sure of all open
        positions stay hidden; "origin", "maskgit_plus", "topk_margin", "entropy" Dream's; "transfer" LLaDA's equal share per step, in
        blocks of block_length. threshold: also reveal what is at least this sure; factor: also the n surest while the k-th of them is
        at least 1 - factor / (k + 1) sure. reveal_temperature: Gumbel noise on Dream's order. time_floor: the time Dream ends at.
    Simplex diffusion (TESS 2):
        transition: "ddpm" draws fresh noise every step, "ddim" keeps what the prediction leaves of the old noise (and its `[A, V]`).
        reward_scale: the logits move this far along the gradient of the engine's reward model, reward_steps times a step; 0 is off.
        reward_temperature: of the softmax it reads; reward_hard: it reads the most probable tokens, the gradient as if it had not.
        reward_rule: it judges at the "last_token" of the answer, or as the "reference" does (a pad, and gradients that pile up).
    Latent ODE (L2D: every token is integrated in a latent space, then read):
        steps: evaluations per token at most, the base model's included (1: the base model alone); solver: a Runge-Kutta method of equal
        steps, or an embedded pair (fehlberg2, adaptive_heun, bosh3) that chooses each sequence's own within flow_tolerance. flow_end: the
        time the path ends at; less than 1 for heun2, rk4 and the pairs, whose last stage would stand where the velocity has no value
        and counts as zero. flow_temperature: of the velocity's target at t = 0 (0: the most probable token), falling as
        (1 - t / flow_end)^flow_power. flow_estimate: the target is a "sample", the "average" flow vector, that brought to full length
        ("average_normalised"), or the flow vector nearest to it. flow_label: class of the request, by number; cfg_scale: s in
        v = (1 + s) v(label) - s v(null).
    A setting that nothing reads under the others is refused (READ_WITH).
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
    reveal: str = "random"
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    threshold: float | None = None
    factor: float | None = None
    reveal_temperature: float = 0.0
    time_floor: float = 1e-3
    solver: str = "midpoint"
    flow_end: float = 1.0
    flow_temperature: float = 0.0
    flow_power: float = 0.0
    flow_estimate: str = "sample"
    flow_tolerance: float = 1e-5
    flow_label: int | None = None
    transition: str = "ddpm"
    reward_scale: float = 0.0
    reward_steps: int = 1
    reward_temperature: float = 1.0
    reward_hard: bool = False
    reward_rule: str = "last_token"
    early_stop: bool = True
    stop: tuple[str, ...] = ()
    seed: int = 0
    profile: str = "custom"

    def __post_init__(self) -> None:
        for name in ("stop", "suppress_tokens"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, (str, int)) else tuple(value))
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

    precision "auto" computes in dtype throughout; "fp8" and "int8" quantise the projections' weights once and their rows at each step,
    "int8_weights" the weights alone, to save memory; all after the adapter is merged.
    dtype "auto" is bfloat16 where the hardware computes in it, float32 elsewhere. merge False keeps the adapter's low-rank path
    beside the weights. any_base True accepts an adapter made for another base of the same shapes. batch_invariant None means on for
    CPU. ops is a backend name, or "op=backend,op=backend". mask_token is the piece that stands for a hidden position where no adapter
    names one (the authors' "MASK"); None: the engine only decodes autoregressively. threads: CPU threads, None leaves torch's.
    reward_model: folder of a sequence classifier that guides a simplex model's decodes (`SamplingParams.reward_scale`).
    driver: "eager" calls every step, "replay" replays a captured one, "loop" launches a whole decode as one graph; the tokens are the
    same. "auto" is eager on a CPU, else the loop where it can be built. On a CPU the captured drivers are simulated (for tests).
    """

    device: str = "auto"
    dtype: str = "auto"
    precision: str = "auto"
    merge: bool = True
    any_base: bool = False
    batch_invariant: bool | None = None
    ops: str = "auto"
    mask_token: str | None = "MASK"
    reward_model: str | None = None
    threads: int | None = None
    driver: str = "auto"

    def __post_init__(self) -> None:
        _one_of("dtype", self.dtype, DTYPES)
        _one_of("precision", self.precision, PRECISIONS)
        _one_of("driver", self.driver, DRIVERS)
        if self.threads is not None and not 1 <= self.threads <= MOST_THREADS:
            raise ConfigError(f"threads is {self.threads}, expected 1 to {MOST_THREADS}.")


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


def check_setting(name: str, value: Any) -> None:
    """Raise ConfigError where `value` cannot hold for the sampling parameter `name`, whatever the others are."""
    if name in CHOICES:
        _one_of(name, value, CHOICES[name])
    elif name in LEAST:
        if value is not None or name not in MAY_BE_NONE:
            _at_least(name, value, LEAST[name])
            if value > MOST[name]:
                most = "below 2**63" if name == "seed" else f"of at most {MOST[name]}"
                raise ConfigError(f"{name} is {value}, expected an integer {most}.")
    elif name in RANGES:
        if value is not None or name not in MAY_BE_NONE:
            _between(name, value, *RANGES[name])
    elif name == "suppress_tokens":
        for token in value:
            _at_least("suppress_tokens: an id", token, 0)
    elif name == "stop":
        if not all(isinstance(text, str) and text for text in value):
            raise ConfigError(f"stop is {value!r}, expected texts that are not empty.")
    elif name != "profile" and not isinstance(value, bool):
        raise ConfigError(f"{name} is {value!r}, expected true or false.")


def unread_settings(values: Mapping[str, Any]) -> dict[str, str]:
    """Return the sampling parameters that differ from their defaults although nothing reads them, each with what would.

    Args:
        values: canonical names; what is absent has its default.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(SamplingParams)}
    full = {**defaults, **values}
    return {name: readers for name, (is_read, readers) in READ_WITH.items() if full[name] != defaults[name] and not is_read(full)}


def _check_sampling(p: SamplingParams) -> None:
    values = {field.name: getattr(p, field.name) for field in dataclasses.fields(p)}
    for name, value in values.items():
        check_setting(name, value)
    if p.remasking == "transfer" and (p.retention != "none" or p.tokens_per_step is not None):
        raise ConfigError('remasking="transfer" commits tokens for good, so retention and tokens_per_step do not apply. Leave them out.')
    if p.retention != "none" and p.remasking not in ("random", "confidence"):
        raise ConfigError(
            f'retention="{p.retention}" chooses the masked positions itself; remasking is "{p.remasking}", expected random or confidence. '
            "Set one of these, or retention to none."
        )
    for name, readers in unread_settings(values).items():
        raise ConfigError(
            f"{name} is {values[name]!r}, expected it only with {readers}: nothing reads it with remasking={p.remasking}, reveal={p.reveal}"
            f"{', noise_schedule=' + p.noise_schedule if name == 'noise_sharpness' else ''}. Leave it out or change the rule."
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
