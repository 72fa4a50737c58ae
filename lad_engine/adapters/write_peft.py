"""Write an adapter as a PEFT folder, so that PEFT itself and everything built on it load what we trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from .author_files import FACTS_NAME, NORMS_NAME, own_facts
from .low_rank import Adapter
from .peft_config import CONFIG_NAME
from .peft_folder import WEIGHTS_NAME
from .scales import default_scale, lora_alpha
from .single_file import tensor_dtype
from .targets import short_names
from .whole_files import whole_folder, write_json, write_tensors


def write_peft_folder(folder: str | Path, adapter: Adapter, *, dtype: str = "float32") -> Path:
    """Write adapter_config.json, adapter_model.safetensors (in `dtype`), lad_facts.json and, with norms, normalization_state.pt.

    The folder appears whole or not at all; an older adapter folder of that name is replaced. PEFT reads no norms by itself.
    Raises:
        AdapterError: dtype is unknown, `folder` is something else already, or it cannot be written.
    """
    folder, kind = Path(folder), tensor_dtype(dtype)
    tensors = {}
    for module, pair in adapter.weights.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = pair.a.to(kind)
        tensors[f"base_model.model.{module}.lora_B.weight"] = pair.b.to(kind)
    with whole_folder(folder, CONFIG_NAME) as temporary:
        write_json(temporary / CONFIG_NAME, _config(adapter))
        write_json(temporary / FACTS_NAME, own_facts(adapter.facts))
        write_tensors(temporary / WEIGHTS_NAME, tensors, {"format": "pt"})
        if adapter.norms:
            state = {f"base_model.model.{name}.weight": norm.detach().to("cpu", torch.float32) for name, norm in adapter.norms.items()}
            torch.save(state, temporary / NORMS_NAME)
    return folder


def _config(adapter: Adapter) -> dict[str, Any]:
    facts = adapter.facts
    odd = {m: p for m, p in adapter.weights.items() if p.scale != default_scale(facts, p.rank)}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": facts.base_name or None,
        "inference_mode": True,
        "r": facts.rank,
        "lora_alpha": _plain(facts.alpha),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": facts.uses_rslora,
        "target_modules": _targets(adapter),
        "rank_pattern": {m: p.rank for m, p in adapter.weights.items() if p.rank != facts.rank},
        "alpha_pattern": {m: _plain(lora_alpha(p.scale, p.rank, facts.uses_rslora)) for m, p in odd.items()},
    }


def _targets(adapter: Adapter) -> list[str]:
    # short names say "in every layer", so they are used only when each of them is in every layer from the first on, and no target was
    # a path: how many layers the base has is not known here
    names = short_names(adapter.weights)
    layers: dict[str, set[str]] = {}
    for module in adapter.weights:
        prefix, _, name = module.rpartition(".")
        layers.setdefault(name, set()).add(prefix.split(".")[2] if prefix.startswith("model.layers.") else "")
    in_layers = [found for found in layers.values() if found != {""}]
    whole = {str(i) for i in range(max(map(len, in_layers), default=0))}
    has_paths = any("." in target for target in adapter.facts.targets)
    is_uniform = all(found == whole for found in in_layers) and not has_paths and not adapter.facts.extra.get("layers")
    return list(names) if is_uniform else list(adapter.weights)


def _plain(value: float) -> int | float:
    return int(value) if float(value).is_integer() else value
