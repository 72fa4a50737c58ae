"""The authors' released checkpoints (a pickled whole module, LAD spec section 3): the adapter inside, and the base around it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..contracts import AdapterFacts
from ..errors import AdapterError
from .author_files import DEFAULT_MASK, UNKNOWN_ID
from .inert_pickle import Record
from .legacy_archive import LegacyArchive, TensorRef, mapping_of, tensor_ref
from .low_rank import Adapter, pair_up
from .peft_config import read_peft_config
from .peft_folder import LORA_KEY, PICKLE_NAME, assemble
from .scales import lora_alpha
from .targets import short_names

MAX_MODULES = 200_000
MAX_DEPTH = 32
WRAPPERS = ("llama.", "model.llama.", "module.")
IGNORED_ENDINGS = ("rotary_emb.inv_freq", "rotary_emb.original_inv_freq")
REFUSED_PARTS = {
    "lora_embedding_": "LoRA on embeddings",
    "lora_magnitude_vector": "weight-decomposed LoRA",
    "modules_to_save": "fully trained modules",
}


@dataclass
class LegacyState:
    """What a legacy file holds: tensors by their name in the file, and every module's record by its path."""

    tensors: dict[str, TensorRef] = field(default_factory=dict)
    modules: dict[str, Record] = field(default_factory=dict)


def read_state(archive: LegacyArchive) -> LegacyState:
    """Collect the parameters of a pickled module (or of a plain state dict) by dotted name; buffers are left out.

    Raises:
        AdapterError: the file holds neither, or its modules form a loop.
    """
    where, root = str(archive.path), archive.root
    state = LegacyState()
    if isinstance(root, Record) and isinstance(root.state, dict) and "_modules" in root.state:
        for path, record in _modules(where, root):
            state.modules[path] = record
            for name, value in mapping_of(record.state.get("_parameters")).items():
                ref = tensor_ref(value, where)
                if ref is not None:
                    state.tensors[f"{path}.{name}".lstrip(".")] = ref
    else:
        refs = {str(name): tensor_ref(value, where) for name, value in mapping_of(root).items()}
        state.tensors = {name: ref for name, ref in refs.items() if ref is not None}
    if not state.tensors:
        raise AdapterError(f"{where}: holds no model parameters, expected a pickled model or a state dict.")
    return state


def legacy_adapter(archive: LegacyArchive, state: LegacyState) -> Adapter:
    """The LoRA part of a legacy file as an adapter: alpha = rank unless a layer records another scale, mask token "MASK".

    Raises:
        AdapterError: there is no LoRA in it, or a kind of it that we would compute wrongly.
    """
    where = str(archive.path)
    halves: dict[str, dict[str, Any]] = {}
    scales: dict[str, float] = {}
    for name, ref in state.tensors.items():
        for part, meaning in REFUSED_PARTS.items():
            if part in name:
                raise AdapterError(f"{where}: {name} belongs to {meaning}, expected only lora_A and lora_B weights of linear layers.")
        match = LORA_KEY.match(name)
        if match:
            module = base_name_of(match["module"])
            if match["half"] in halves.setdefault(module, {}):
                raise AdapterError(f"{where}: {module} carries more than one adapter, expected one.")
            halves[module][match["half"]] = archive.load(ref)
            scales[module] = _scale(state.modules.get(match["module"]), match["adapter"])
    weights = pair_up(where, halves, lambda module, _: scales[module])
    rank = Counter(pair.rank for pair in weights.values()).most_common(1)[0][0]
    scale = Counter(pair.scale for pair in weights.values()).most_common(1)[0][0]
    facts = AdapterFacts(
        name=archive.path.stem,
        rank=rank,
        alpha=lora_alpha(scale, rank, False),
        targets=short_names(weights),
        mask_token=DEFAULT_MASK,
        mask_id=UNKNOWN_ID,
        prompt_format="space",
        corruption="code",
        profile="space",
        base_name=_recorded_base(state),
    )
    return Adapter(facts, weights, {}, archive.path)


def base_tensors(state: LegacyState) -> dict[str, TensorRef]:
    """The base weights of a legacy file by Hugging Face name, adapted layers included, LoRA left out."""
    names = {name: base_name_of(name.replace(".base_layer.", ".")) for name in state.tensors if not LORA_KEY.match(name)}
    return {new: state.tensors[old] for old, new in names.items() if not new.endswith(IGNORED_ENDINGS)}


def base_name_of(name: str) -> str:
    """Strip the authors' wrapper and PEFT's from a parameter or module name (spec section 3's key map)."""
    for wrapper in (*WRAPPERS, "base_model.model."):
        name = name.removeprefix(wrapper)
    return name


def read_pickled_peft(folder: Path) -> Adapter:
    """Read a PEFT folder whose weights are the pickle adapter_model.bin, without executing it."""
    config = read_peft_config(folder)
    with LegacyArchive(folder / PICKLE_NAME) as archive:
        tensors = {name: archive.load(ref) for name, ref in read_state(archive).tensors.items()}
    return assemble(folder, config, tensors, folder / PICKLE_NAME)


def _modules(where: str, root: Record) -> Iterator[tuple[str, Record]]:
    waiting: list[tuple[str, Record, int]] = [("", root, 0)]
    count = 0
    while waiting:
        path, record, depth = waiting.pop()
        count += 1
        # a hostile file can name a module inside itself
        if count > MAX_MODULES or depth > MAX_DEPTH:
            raise AdapterError(f"{where}: its modules are nested without end, expected a plain tree of modules. The file is hostile.")
        yield path, record
        for name, child in mapping_of(record.state.get("_modules")).items():
            if isinstance(child, Record) and isinstance(child.state, dict):
                waiting.append((f"{path}.{name}".lstrip("."), child, depth + 1))


def _scale(layer: Record | None, adapter: str | None) -> float:
    scaling: Mapping[Any, Any] = mapping_of(layer.state.get("scaling")) if layer is not None else {}
    value = scaling.get(adapter)
    # spec section 3: alpha = r in every released checkpoint
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else 1.0


def _recorded_base(state: LegacyState) -> str:
    for record in state.modules.values():
        config = record.state.get("config")
        name = config.state.get("_name_or_path") if isinstance(config, Record) and isinstance(config.state, dict) else None
        if isinstance(name, str) and name:
            return name
    return ""
