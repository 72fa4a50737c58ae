"""The base inside a legacy file as a Hugging Face folder, with the adapter beside it: streamed in shards, never all in memory."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import AdapterError, CheckpointError
from ..model.hub import TOKENIZER_FILES
from ..model.weights import open_checkpoint
from .inert_pickle import Record
from .legacy import LegacyState, base_tensors
from .legacy_archive import LegacyArchive, TensorRef, mapping_of
from .low_rank import Adapter
from .shards import write_shards
from .single_file import save_single_file
from .whole_files import whole_folder, write_json

ADAPTER_NAME = "adapter.safetensors"
# what the decoder needs of a config; everything else in the record stays behind
CONFIG_FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
    "rms_norm_eps",
    "hidden_act",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "attention_bias",
    "mlp_bias",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "tie_word_embeddings",
    "sliding_window",
    "use_sliding_window",
)


def write_full_folder(
    folder: str | Path, archive: LegacyArchive, state: LegacyState, adapter: Adapter, tokenizer: Path | None = None, dtype: str = "bfloat16"
) -> Path:
    """Write config.json, the base weights in the dtype stored, adapter.safetensors (in `dtype`), and the tokenizer files of `tokenizer`.

    The result is opened and checked before it takes its place.
    Raises:
        AdapterError: the file holds no model config, its weights do not fit it, or the folder cannot be written.
    """
    folder = Path(folder)
    config, model = _config_record(archive, state)
    tensors = base_tensors(state)
    settings = _settings(config, model, tensors)
    if settings["tie_word_embeddings"]:
        tensors.pop("lm_head.weight", None)
    with whole_folder(folder, ADAPTER_NAME) as temporary:
        write_json(temporary / "config.json", settings)
        write_shards(temporary, {name: (archive, ref) for name, ref in tensors.items()})
        save_single_file(temporary / ADAPTER_NAME, adapter, dtype=dtype)
        copy_tokenizer(temporary, tokenizer)
        try:
            open_checkpoint(temporary)
        except CheckpointError as error:
            raise AdapterError(f"{archive.path}: its base cannot be used: {str(error).replace(str(temporary), str(folder))}") from error
    return folder


def _config_record(archive: LegacyArchive, state: LegacyState) -> tuple[Mapping[Any, Any], Record]:
    # the wrapper's own config is wrong for all sizes but 8B (spec section 3), so only transformers' counts
    for record in state.modules.values():
        config = record.state.get("config")
        if isinstance(config, Record) and config.origin[0].startswith("transformers.models.") and isinstance(config.state, dict):
            return config.state, config
    raise AdapterError(
        f"{archive.path}: holds no transformers config, expected a pickled whole model. Convert it with --to single or --to peft."
    )


def _settings(config: Mapping[Any, Any], record: Record, tensors: Mapping[str, TensorRef]) -> dict[str, Any]:
    family = record.origin[0].split(".")[2]
    settings: dict[str, Any] = {"model_type": family, "architectures": [record.origin[1].removesuffix("Config") + "ForCausalLM"]}
    for name in CONFIG_FIELDS:
        value = config.get(name)
        if value is not None and _is_plain(value):
            settings[name] = dict(mapping_of(value)) if mapping_of(value) else value
    embedding, head = tensors.get("model.embed_tokens.weight"), tensors.get("lm_head.weight")
    settings["tie_word_embeddings"] = head is None or (
        embedding is not None and head.storage == embedding.storage and head.offset == embedding.offset
    )
    if embedding is not None and len(embedding.shape) == 2:
        settings["vocab_size"], settings["hidden_size"] = embedding.shape
        settings["torch_dtype"] = str(embedding.dtype).removeprefix("torch.")
    return settings


def _is_plain(value: Any) -> bool:
    flat = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else [value]
    return all(isinstance(item, (str, int, float, bool, type(None))) for item in flat)


def copy_tokenizer(folder: Path, source: Path | None) -> None:
    """Copy the tokenizer files and generation_config.json of `source`, where one is given; AdapterError where it has none."""
    if source is None:
        return
    found = [file for pattern in (*TOKENIZER_FILES, "generation_config.json") for file in sorted(source.glob(pattern)) if file.is_file()]
    if not found:
        raise AdapterError(
            f"{source}: holds no tokenizer files, expected the folder of the base model. Leave --tokenizer out or give that folder."
        )
    for file in found:
        shutil.copyfile(file, folder / file.name)
