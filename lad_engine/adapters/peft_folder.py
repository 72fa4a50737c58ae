"""A PEFT folder, with the extra files the LAD authors' trainer leaves in it, read into an Adapter."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import AdapterError
from .author_files import norms_of, run_settings
from .low_rank import Adapter, pair_up
from .peft_config import CONFIG_NAME, PeftConfig, read_peft_config
from .single_file import facts_from_mapping
from .targets import short_names

WEIGHTS_NAME = "adapter_model.safetensors"
PICKLE_NAME = "adapter_model.bin"
# base_model.model.<module>.lora_A.weight, with the adapter's name before "weight" where a state dict was saved as it is
LORA_KEY = re.compile(r"^(?P<module>.+)\.lora_(?P<half>[AB])(?:\.(?P<adapter>[^.]+))?\.weight$")
# PEFT stores the base's own head or embedding along when lm_head is a target; preflight compares them with the base
BASE_COPY = re.compile(r"^(?:base_model\.)?(?:model\.)?(lm_head|model\.embed_tokens)(?:\.base_layer)?\.weight$")
REFUSED_KEYS = {
    "lora_embedding_": "LoRA on embeddings",
    "lora_magnitude_vector": "weight-decomposed LoRA (use_dora)",
    "modules_to_save": "fully trained modules (modules_to_save)",
    ".bias": "trained biases (bias)",
}


def read_peft_folder(folder: str | Path) -> Adapter:
    """Read adapter_config.json and adapter_model.safetensors; weights become fp32.

    Facts PEFT does not record come from the authors' resolved_config.json, mask_token.json and normalization_state.pt where present.
    Raises:
        AdapterError: a file is missing, damaged or a pickle, or the adapter is of a kind we would compute wrongly.
    """
    folder = Path(folder)
    config = read_peft_config(folder)
    if not (folder / WEIGHTS_NAME).is_file():
        raise AdapterError(f"{folder}: {_missing_weights(folder)}")
    return assemble(folder, config, _tensors(folder / WEIGHTS_NAME), folder / WEIGHTS_NAME)


def assemble(folder: Path, config: PeftConfig, tensors: Mapping[str, Tensor], source: Path) -> Adapter:
    """Build the adapter of `folder` from its parsed config and the tensors of `source` by their PEFT names."""
    halves: dict[str, dict[str, Tensor]] = {}
    copies: dict[str, Tensor] = {}
    names = set()
    for key, tensor in tensors.items():
        match = LORA_KEY.match(key)
        copy = BASE_COPY.match(key)
        if copy:
            copies[f"{copy[1]}.weight"] = tensor
            continue
        if not match:
            raise AdapterError(f"{source}: tensor {key} {_why_refused(key)}")
        halves.setdefault(module_path(match["module"]), {})[match["half"]] = tensor
        names.add(match["adapter"])
    if len(names) > 1:
        raise AdapterError(
            f"{source}: holds the adapters {', '.join(sorted(map(str, names)))}, expected one. Save each in a folder of its own."
        )
    weights = pair_up(str(source), halves, config.scale_of)
    # Names alone would say "in every layer" of what was named by its path.
    has_paths = not isinstance(config.targets, str) and any(target in weights and "." in target for target in config.targets)
    known = {
        "name": folder.resolve().name,
        "rank": config.rank,
        "alpha": config.alpha,
        "targets": sorted(weights) if has_paths else list(short_names(weights)),
        "base_name": config.base_name,
        "uses_rslora": config.uses_rslora,
    }
    if config.layers is not None:
        known["extra"] = {"layers": config.layers if isinstance(config.layers, int) else list(config.layers)}
    settings = run_settings(folder)
    settings["extra"] = {**known.get("extra", {}), **settings["extra"]}
    return Adapter(facts_from_mapping(str(folder), {**known, **settings}), weights, norms_of(folder), folder, config.adapts, copies)


def module_path(name: str) -> str:
    """Strip PEFT's wrappers from a module name, and complete it where the base was saved without its language-model head."""
    for prefix in ("base_model.model.", "base_model."):
        if name.startswith(prefix):
            name = name.removeprefix(prefix)
            break
    return f"model.{name}" if name.startswith("layers.") else name


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError, ValueError) as error:
        raise AdapterError(
            f"{path}: cannot be read as safetensors ({error}). The file is damaged or incomplete; fetch it again."
        ) from error


def _missing_weights(folder: Path) -> str:
    if (folder / PICKLE_NAME).is_file():
        advice = f"Convert it with: python -m lad_engine.convert {folder} OUT --to peft."
        return f"holds only the pickle {PICKLE_NAME}, expected {WEIGHTS_NAME}. {advice}"
    return f"{WEIGHTS_NAME} is missing, expected it beside {CONFIG_NAME}."


def _why_refused(key: str) -> str:
    for mark, meaning in REFUSED_KEYS.items():
        if mark in key:
            return f"belongs to {meaning}, expected only lora_A and lora_B weights of linear layers. Use a plain LoRA adapter."
    return "is unknown, expected names such as base_model.model.<module>.lora_A.weight. The file is of another kind."
