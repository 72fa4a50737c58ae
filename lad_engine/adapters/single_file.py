"""Our own form of an adapter: one safetensors file whose metadata holds every fact as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..contracts import AdapterFacts
from ..errors import AdapterError
from ..model.simplex_facts import TIME_EMBEDDING
from .low_rank import Adapter, pair_up
from .scales import default_scale
from .whole_files import whole_file, write_tensors

FORMAT = "lad-adapter"
VERSION = "1"
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
HALVES = {".lora_A.weight": "A", ".lora_B.weight": "B"}
# What the types of AdapterFacts are in JSON, and in words.
JSON_KINDS = {
    "str": ((str,), "a string"),
    "int": ((int,), "an integer"),
    "float": ((int, float), "a number"),
    "bool": ((bool,), "true or false"),
    "tuple[str, ...]": ((list,), "a list"),
    "Mapping[str, Any]": ((dict,), "an object"),
}
REQUIRED = ("name", "rank", "alpha", "targets", "mask_token", "mask_id")


def save_single_file(path: str | Path, adapter: Adapter, *, dtype: str = "bfloat16") -> Path:
    """Write `adapter` as one file, low-rank pairs in `dtype` ("bfloat16" or "float32"), norms in fp32; whole or not at all.

    Raises:
        AdapterError: dtype is unknown, a fact cannot be stored as JSON, or the file cannot be written.
    """
    path, kind = Path(path), tensor_dtype(dtype)
    tensors: dict[str, Tensor] = {}
    for module, pair in adapter.weights.items():
        tensors[f"{module}.lora_A.weight"] = pair.a.to(kind)
        tensors[f"{module}.lora_B.weight"] = pair.b.to(kind)
    tensors |= {f"{module}.weight": norm.to(torch.float32) for module, norm in adapter.norms.items()}
    metadata = {"format": FORMAT, "version": VERSION, "facts": _facts_json(path, adapter.facts), "scales": json.dumps(_odd_scales(adapter))}
    with whole_file(path) as temporary:
        write_tensors(temporary, tensors, metadata)
    return path


def read_single_file(path: str | Path) -> Adapter:
    """Read a file written by `save_single_file`; weights become fp32.

    Raises:
        AdapterError: the file is corrupt, is not of this form or version, a fact is missing or unknown, or a tensor has no partner.
    """
    path = Path(path)
    metadata, tensors = _open(path)
    if metadata.get("format") != FORMAT:
        raise AdapterError(f"{path}: {_what_else(path)}")
    if metadata.get("version") != VERSION:
        raise AdapterError(f"{path}: version is {metadata.get('version')}, expected {VERSION}. Update lad-engine to read it.")
    facts = _facts_of(path, metadata)
    odd = _scales_of(path, metadata)
    halves: dict[str, dict[str, Tensor]] = {}
    norms: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        half = next((suffix for suffix in HALVES if name.endswith(suffix)), None)
        if half:
            halves.setdefault(name.removesuffix(half), {})[HALVES[half]] = tensor
        elif name.endswith("norm.weight") or name == TIME_EMBEDDING:
            norms[name.removesuffix(".weight")] = tensor.to(torch.float32)
        else:
            raise AdapterError(f"{path}: tensor {name} is unknown, expected names ending in lora_A.weight, lora_B.weight or norm.weight.")
    pairs = pair_up(str(path), halves, lambda module, rank: odd[module] if module in odd else default_scale(facts, rank))
    return Adapter(facts, pairs, norms, path)


def tensor_dtype(name: str) -> torch.dtype:
    """The storage dtype called `name`; raise AdapterError naming the accepted ones."""
    if name not in DTYPES:
        raise AdapterError(f"dtype is {name!r}, expected one of {', '.join(DTYPES)}.")
    return DTYPES[name]


def facts_from_mapping(where: str, values: Mapping[str, Any]) -> AdapterFacts:
    """Build AdapterFacts from JSON values; raise AdapterError naming a missing or unknown fact or a wrong type."""
    known = {f.name for f in dataclasses.fields(AdapterFacts)}
    for name in REQUIRED:
        if name not in values:
            raise AdapterError(f"{where}: fact {name} is missing, expected one of {', '.join(REQUIRED)} each. Write the file again.")
    for name in values:
        if name not in known:
            raise AdapterError(f"{where}: fact {name} is unknown, expected {', '.join(sorted(known))}. Update lad-engine to read it.")
    for field in dataclasses.fields(AdapterFacts):
        type_name, _, may_be_none = field.type.partition(" | ")
        kinds, words = JSON_KINDS[type_name]
        value = values.get(field.name)
        if field.name not in values or (value is None and may_be_none):
            continue
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise AdapterError(f"{where}: fact {field.name} is {value!r}, expected {words}. Correct it.")
    return AdapterFacts(**{**values, "targets": tuple(values["targets"])})


def _open(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            return dict(file.metadata() or {}), {name: file.get_tensor(name) for name in file.keys()}
    except FileNotFoundError as error:
        raise AdapterError(f"{path}: there is no such file.") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise AdapterError(f"{path}: cannot be read as safetensors ({error}). The file is damaged or of another kind.") from error


def _what_else(path: Path) -> str:
    if (path.parent / "adapter_config.json").is_file():
        return "this is the tensor file of a PEFT folder, expected the folder itself. Give its folder as the adapter."
    if (path.parent / "config.json").is_file():
        return "this is the weights file of a whole model, expected an adapter. Give its folder as the model."
    return f'metadata "format" is not {FORMAT}, expected an adapter file of lad-engine. Convert it with: python -m lad_engine.convert.'


def _facts_json(path: Path, facts: AdapterFacts) -> str:
    try:
        return json.dumps({**dataclasses.asdict(dataclasses.replace(facts, extra={})), "extra": dict(facts.extra)}, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise AdapterError(f"{path}: the adapter's facts cannot be stored ({error}), expected plain JSON values in extra.") from error


def _odd_scales(adapter: Adapter) -> dict[str, float]:
    # JSON keeps a double's full precision, so a scale survives the round trip exactly
    return {m: pair.scale for m, pair in adapter.weights.items() if pair.scale != default_scale(adapter.facts, pair.rank)}


def _facts_of(path: Path, metadata: Mapping[str, str]) -> AdapterFacts:
    return facts_from_mapping(str(path), _json_of(path, metadata, "facts"))


def _scales_of(path: Path, metadata: Mapping[str, str]) -> dict[str, float]:
    scales = _json_of(path, metadata, "scales")
    for module, scale in scales.items():
        if isinstance(scale, bool) or not isinstance(scale, (int, float)):
            raise AdapterError(f"{path}: scale of {module} is {scale!r}, expected a number. The file is damaged.")
    return scales


def _json_of(path: Path, metadata: Mapping[str, str], name: str) -> dict[str, Any]:
    try:
        value = json.loads(metadata[name])
    except (KeyError, ValueError) as error:
        raise AdapterError(f"{path}: metadata {name} is missing or not JSON, expected an object. The file is damaged.") from error
    if not isinstance(value, dict):
        raise AdapterError(f"{path}: metadata {name} is a {type(value).__name__}, expected an object. The file is damaged.")
    return value
