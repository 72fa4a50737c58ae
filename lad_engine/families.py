"""Decoding families: which one a checkpoint's own files say it decodes with, and which settings each family reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from .config import SamplingParams
from .contracts import ModelFacts
from .errors import CheckpointError, ConfigError

DECODINGS = ("lad", "masked", "simplex", "latent_ode")
# model_type of config.json that only a masked diffusion model has
MASKED_TYPES = ("llada", "Dream")
# DiffuGPT's and DiffuLLaMA's wrapper splits the transformer off its embedding under this name.
WRAPPER = "denoise_model."
TIME_EMBEDDING = "timestep_embed.weight"
# L2D keeps its flow vocabulary's projection under this name.
FLOW = "model.flow_token_embedder."
_LOOP = ("max_new_tokens", "steps", "stop", "seed", "profile")
_TOKENS = ("temperature", "top_k", "top_p", "top_p_rule", "confidence", "eos_bias", "suppress_tokens", "eos_treatment")
# The sampling parameters each family reads; `config.READ_WITH` says which of them need others.
READS: dict[str, tuple[str, ...]] = {
    "lad": (
        *_LOOP,
        *_TOKENS,
        *("block_length", "tokens_per_step", "noise_schedule", "noise_start", "noise_sharpness", "noise_clip", "cluster_size"),
        *("remasking", "permanent_unmask", "retention", "selection", "threshold", "eos_split", "cfg_scale", "early_stop"),
        *("frequency_penalty", "presence_penalty"),
    ),
    "masked": (
        *_LOOP,
        *_TOKENS,
        *("reveal", "threshold", "factor", "reveal_temperature", "time_floor"),
        *("block_length", "selection", "cfg_scale", "early_stop"),
    ),
    "simplex": (
        *_LOOP,
        *("temperature", "top_p", "top_p_rule", "suppress_tokens", "eos_bias", "transition"),
        *("reward_scale", "reward_steps", "reward_temperature", "reward_hard", "reward_rule"),
    ),
    "latent_ode": (
        *_LOOP,
        *("temperature", "top_k", "top_p", "top_p_rule", "confidence", "eos_bias", "suppress_tokens"),
        *("solver", "flow_end", "flow_temperature", "flow_power", "flow_estimate", "flow_tolerance", "flow_label", "cfg_scale"),
    ),
}
DEFAULT_PROFILES = {"latent_ode": "l2d", "lad": "paper", "masked": "diffullama", "simplex": "tess2"}
# By backbone (model_type), where a decoding family's checkpoints have different habits.
OWN_PROFILES = {"gpt2": "diffugpt", "llada": "llada_masked", "Dream": "dream"}


def decoding_of(config: Mapping[str, Any], names: Iterable[str] = (), has_mask_token: bool = False) -> str:
    """Return what a checkpoint decodes with, from its config.json, its tensor names and its tokenizer; never from its name.

    In this order: config.json's own field "decoding" (our exports write it); a time embedding; a flow path; a model_type of masked
    diffusion; the wrapper's tensor names; a tokenizer that names a mask token, which no causal base does. Anything else is a base for LAD.
    Raises:
        CheckpointError: the field names no family.
    """
    own = config.get("decoding")
    if own is not None:
        if own not in DECODINGS:
            raise CheckpointError(f"config.json: decoding is {own!r}, expected one of {', '.join(DECODINGS)}. Correct or remove it.")
        return str(own)
    names = tuple(names)
    if TIME_EMBEDDING in names:
        return "simplex"
    if any(name.startswith(FLOW) for name in names):
        return "latent_ode"
    is_masked = config.get("model_type") in MASKED_TYPES or any(name.startswith(WRAPPER) for name in names) or has_mask_token
    return "masked" if is_masked else "lad"


def default_profile(facts: ModelFacts) -> str:
    """Return the profile a checkpoint is decoded with where neither an adapter nor the caller names one."""
    own = OWN_PROFILES.get(facts.family) if facts.decoding == "masked" else None
    return own or DEFAULT_PROFILES.get(facts.decoding, facts.decoding)


def check_settings(decoding: str, names: Collection[str]) -> None:
    """Raise ConfigError where a setting was given that the family does not read.

    Args:
        names: canonical names of SamplingParams fields that the caller set.
    """
    for name in sorted(set(names) - set(READS[decoding])):
        readers = " or ".join(other for other in DECODINGS if name in READS[other]) or "no"
        raise ConfigError(
            f"{name} is given, but this checkpoint decodes as {decoding}, which does not read it (it belongs to {readers} checkpoints). "
            "Leave it out."
        )


def check_params(decoding: str, params: SamplingParams) -> None:
    """Raise ConfigError where a parameter that the family does not read differs from its default."""
    given = [field.name for field in dataclasses.fields(params) if getattr(params, field.name) != field.default]
    check_settings(decoding, given)
