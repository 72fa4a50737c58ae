"""adapter_config.json of PEFT: what we compute as PEFT does, and a refusal by name of everything else."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import AdapterError
from .scales import lora_scale
from .targets import is_target, pattern_value

CONFIG_NAME = "adapter_config.json"
# each of these changes the update's formula or adapts something other than linear weights
REFUSED = {
    "use_dora": "weight-decomposed LoRA",
    "lora_bias": "biases in the low-rank path",
    "fan_in_fan_out": "transposed weights",
    "modules_to_save": "fully trained modules",
    "trainable_token_indices": "trained token embeddings",
    "target_parameters": "LoRA on bare parameters",
    "layer_replication": "repeated layers",
    "use_qalora": "quantisation-aware LoRA",
    "use_bdlora": "block-diagonal LoRA",
    "alora_invocation_tokens": "activated LoRA",
    "arrow_config": "routed adapters",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
}
# these initialisations move a part of the base weight into the adapter, so the plain base no longer fits it
BASE_CHANGING_INITS = ("pissa", "olora", "loftq", "corda", "lora_ga")


@dataclass(frozen=True)
class PeftConfig:
    """The settings of one adapter_config.json that decide which modules are adapted and by how much."""

    where: str
    rank: int
    alpha: float
    targets: str | tuple[str, ...]
    uses_rslora: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    exclude: str | tuple[str, ...] | None
    layers: int | tuple[int, ...] | None
    layers_pattern: str | tuple[str, ...] | None
    base_name: str

    def adapts(self, module: str) -> bool:
        """Say whether PEFT would adapt this module of the base."""
        return is_target(module, self.targets, exclude=self.exclude, layers=self.layers, layers_pattern=self.layers_pattern)

    def scale_of(self, module: str, rank: int) -> float:
        """The scale of one module; raise AdapterError where the file's rank is not the config's or the module is not a target."""
        if not self.adapts(module):
            raise AdapterError(
                f"{self.where}: target_modules does not name {module}, but the tensor file adapts it. The two files do not belong together."
            )
        wanted = pattern_value(self.rank_pattern, module, self.rank)
        if rank != wanted:
            field = "r" if wanted == self.rank else "rank_pattern"
            raise AdapterError(
                f"{self.where}: {field} is {wanted} for {module}, but its tensors have rank {rank}. The two files do not belong together."
            )
        return lora_scale(float(pattern_value(self.alpha_pattern, module, self.alpha)), rank, self.uses_rslora)


def read_peft_config(folder: Path) -> PeftConfig:
    """Read and check adapter_config.json.

    Raises:
        AdapterError: missing, not JSON, a field is missing or of a wrong type, or it asks for something we would compute wrongly.
    """
    path = folder / CONFIG_NAME
    values = read_json_object(path)
    where = str(path)
    kind = values.get("peft_type")
    if kind != "LORA":
        raise AdapterError(f"{where}: peft_type is {kind!r}, expected 'LORA'. Only LoRA adapters can be loaded.")
    _refuse(where, values)
    targets = values.get("target_modules")
    if not targets or not isinstance(targets, (str, list)) or not all(isinstance(t, str) for t in targets):
        raise AdapterError(f"{where}: target_modules is {targets!r}, expected a list of names, a regular expression or 'all-linear'.")
    if isinstance(targets, str):
        _check_regex(where, "target_modules", targets)
    return PeftConfig(
        where=where,
        rank=int(_number(where, values, "r", (int,))),
        alpha=float(_number(where, values, "lora_alpha", (int, float))),
        targets=_frozen(targets),
        uses_rslora=bool(values.get("use_rslora")),
        rank_pattern=_patterns(where, values, "rank_pattern", (int,)),
        alpha_pattern=_patterns(where, values, "alpha_pattern", (int, float)),
        exclude=_frozen(values.get("exclude_modules")),
        layers=_frozen(values.get("layers_to_transform")),
        layers_pattern=_frozen(values.get("layers_pattern")),
        base_name=str(values.get("base_model_name_or_path") or ""),
    )


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON object; raise AdapterError when the file is missing, unreadable or holds something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise AdapterError(
            f"{path.parent}: {path.name} is missing, expected an adapter folder. Give a PEFT folder or a single adapter file."
        ) from error
    except (OSError, ValueError) as error:
        raise AdapterError(f"{path}: cannot be read as JSON ({error}). Save the adapter again.") from error
    if not isinstance(value, dict):
        raise AdapterError(f"{path}: holds a {type(value).__name__}, expected a JSON object. Save the adapter again.")
    return value


def _refuse(where: str, values: Mapping[str, Any]) -> None:
    for name, meaning in REFUSED.items():
        if values.get(name):
            raise AdapterError(
                f"{where}: {name} is {values[name]!r}, expected it off ({meaning} is not supported). Use a plain LoRA adapter."
            )
    if values.get("bias", "none") != "none":
        raise AdapterError(
            f"{where}: bias is {values['bias']!r}, expected 'none' (trained biases are not supported). Use a plain LoRA adapter."
        )
    init = values.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(BASE_CHANGING_INITS):
        raise AdapterError(
            f"{where}: init_lora_weights is {init!r}, which changes the base weights, expected a plain LoRA. "
            "Save the adapter with PEFT's path_initial_model_for_weight_conversion."
        )


def _number(where: str, values: Mapping[str, Any], name: str, kinds: tuple[type, ...]) -> Any:
    value = values.get(name)
    if isinstance(value, bool) or not isinstance(value, kinds) or (name == "r" and value < 1):
        raise AdapterError(f"{where}: {name} is {value!r}, expected {'a positive integer' if name == 'r' else 'a number'}.")
    return value


def _patterns(where: str, values: Mapping[str, Any], name: str, kinds: tuple[type, ...]) -> dict[str, Any]:
    patterns = values.get(name) or {}
    if not isinstance(patterns, dict):
        raise AdapterError(f"{where}: {name} is a {type(patterns).__name__}, expected an object of module patterns and numbers.")
    for key, value in patterns.items():
        if isinstance(value, bool) or not isinstance(value, kinds) or (int in kinds and len(kinds) == 1 and value < 1):
            raise AdapterError(f"{where}: {name} of {key} is {value!r}, expected a {'positive integer' if len(kinds) == 1 else 'number'}.")
        _check_regex(where, name, key)
    return dict(patterns)


def _check_regex(where: str, name: str, pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise AdapterError(f"{where}: {name} has {pattern!r}, which is not a regular expression ({error}).") from error


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
