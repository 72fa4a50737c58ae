"""The files the LAD authors' trainer saves beside a PEFT adapter: run settings, mask token and retrained norms."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..contracts import AdapterFacts
from ..errors import AdapterError
from ..model.simplex_facts import TIME_EMBEDDING
from .peft_config import read_json_object

FACTS_NAME = "lad_facts.json"
OWN_FACTS = (
    "name",
    "mask_token",
    "mask_id",
    "predicts_next_token",
    "prompt_format",
    "system_prompt",
    "corruption",
    "profile",
    "base_fingerprint",
    "eos_id",
    "decoding",
    "extra",
)
NORMS_NAME = "normalization_state.pt"
MASK_NAME = "mask_token.json"
# their published adapters carry the second name; a checkpoint folder inside a run finds the first one a level up
RUN_NAMES = ("resolved_config.json", "lad_run_config.json", "../resolved_config.json")
TRAINED_BASE_NAME = "trainable_base_state.pt"
DEFAULT_MASK = "MASK"
UNKNOWN_ID = -1
# corruption_mode of their config -> (our corruption, the profile their own sampler settings correspond to)
CORRUPTIONS = {"mask_only": ("mask_only", "retain"), "structured": ("paper", "paper")}


def run_settings(folder: Path) -> dict[str, Any]:
    """Facts of a folder that PEFT's own config does not hold, as AdapterFacts fields; our own lad_facts.json wins over their files.

    The mask id stays -1 where no file records it; preflight then takes it from the tokenizer.
    """
    own = _object(folder / FACTS_NAME)
    unknown = sorted(set(own) - set(OWN_FACTS))
    if unknown:
        raise AdapterError(
            f"{folder / FACTS_NAME}: {unknown[0]} is unknown, expected {', '.join(OWN_FACTS)}. Update lad-engine to read it."
        )
    run = next((read_json_object(folder / name) for name in RUN_NAMES if (folder / name).is_file()), {})
    mask = _object(folder / MASK_NAME)
    mode = str(run.get("corruption_mode", "structured"))
    corruption, profile = CORRUPTIONS.get(mode, (mode, "paper"))
    settings = {
        "mask_token": str(run.get("mask_token") or str(mask.get("decoded", "")).strip() or DEFAULT_MASK),
        "mask_id": mask.get("mask_token_id", UNKNOWN_ID),
        "corruption": corruption,
        "profile": profile,
        "extra": {"run": run} if run else {},
        **own,
    }
    if isinstance(settings["mask_id"], bool) or not isinstance(settings["mask_id"], int):
        raise AdapterError(f"{folder}: mask id is {settings['mask_id']!r} in {MASK_NAME} or {FACTS_NAME}, expected an integer.")
    return settings


def own_facts(facts: AdapterFacts) -> dict[str, Any]:
    """What lad_facts.json records: everything AdapterFacts knows and adapter_config.json does not."""
    return {name: dict(facts.extra) if name == "extra" else getattr(facts, name) for name in OWN_FACTS}


def _object(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.is_file() else {}


def norms_of(folder: Path) -> dict[str, Tensor]:
    """The retrained norm weights of normalization_state.pt by module path, fp32 `[D]`; empty where there is no such file.

    Raises:
        AdapterError: the file is not a plain tensor file, or holds something that is not a norm weight.
    """
    if (folder / TRAINED_BASE_NAME).is_file():
        raise AdapterError(
            f"{folder / TRAINED_BASE_NAME}: holds retrained base weights, expected only LoRA and norms. Merge it with its trainer first."
        )
    path = folder / NORMS_NAME
    if not path.is_file():
        return {}
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError) as error:
        # torch's own text suggests turning the protection off, so it is not repeated
        raise AdapterError(
            f"{path}: is not a plain file of tensors, expected norm weights only. The file is damaged or not safe to load."
        ) from error
    if not isinstance(state, dict):
        raise AdapterError(f"{path}: holds a {type(state).__name__}, expected norm weights by name.")
    return {_norm_path(path, name, value): value.to(torch.float32) for name, value in state.items()}


def _norm_path(path: Path, name: Any, value: Any) -> str:
    tensor = str(name).removeprefix("base_model.model.")
    module = tensor.removesuffix(".weight")
    if not isinstance(value, Tensor) or value.ndim != 1 or not (tensor.endswith("norm.weight") or tensor == TIME_EMBEDDING):
        raise AdapterError(f"{path}: {name} is not a norm weight, expected one-dimensional tensors named like model.norm.weight.")
    return module
