"""config.json of a Hugging Face checkpoint -> ModelFacts; anything this engine would compute wrongly is refused by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..contracts import ModelFacts, RopeFacts
from ..errors import CheckpointError
from .layouts import plain_config

# model_type in config.json -> whether q, k and v always carry biases; SmolLM2 calls itself llama
FAMILIES = {"llama": False, "mistral": False, "qwen2": True, "gpt2": True, "llada": False, "Dream": True}
# A larger size, id or number only means that the file is damaged.
LARGEST, FINITE = 2**31 - 1, 1e30
ROPE_KINDS = ("default", "linear", "llama3")
ACTIVATIONS = ("silu", "swish")


def read_facts(folder: Path, name: str = "") -> ModelFacts:
    """Read config.json and, where present, generation_config.json of `folder`.

    Args:
        name: what to call the model in results; the folder's own name when empty.
    Raises:
        CheckpointError: a file is missing or not JSON, a field is missing or wrong, or the model is of a kind we do not compute.
    """
    config = read_json(folder / "config.json")
    generation = read_json(folder / "generation_config.json", optional=True)
    return facts_from_config(config, generation, where=str(folder / "config.json"), name=name or folder.resolve().name)


def read_json(path: Path, optional: bool = False) -> dict[str, Any]:
    """Read a JSON object; `optional` makes a missing file an empty one."""
    if optional and not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path.parent}: {path.name} is missing, expected a Hugging Face model folder. Give a folder with {path.name}, *.safetensors "
            "and a tokenizer."
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}). Check its permissions.") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is not valid JSON ({error}). Download it again.") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds a {type(value).__name__}, expected a JSON object. Download it again.")
    return value


def facts_from_config(config: Mapping[str, Any], generation: Mapping[str, Any], *, where: str, name: str) -> ModelFacts:
    """Turn the fields of config.json (and of generation_config.json, for its end tokens) into ModelFacts."""
    family = config.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        raise CheckpointError(
            f"{where}: model_type is {family!r}, expected one of {', '.join(FAMILIES)}. Choose a model of these families."
        )
    config = plain_config(config, where)
    _refuse_unsupported(config, where)
    width = _size(config, "hidden_size", where)
    query_heads = _size(config, "num_attention_heads", where)
    kv_heads = _size(config, "num_key_value_heads", where, default=query_heads)
    head_width = _size(config, "head_dim", where, default=width // query_heads)
    if query_heads % kv_heads:
        raise CheckpointError(f"{where}: num_key_value_heads is {kv_heads}, expected a divisor of num_attention_heads ({query_heads}).")
    if head_width < 2 or head_width % 2:
        raise CheckpointError(f"{where}: head_dim is {head_width}, expected an even number, because rotary embedding turns pairs.")
    max_positions = _size(config, "max_position_embeddings", where)
    window = _sliding_window(config, where)
    return ModelFacts(
        family=family,
        width=width,
        mlp_width=_size(config, "intermediate_size", where),
        layers=_size(config, "num_hidden_layers", where),
        query_heads=query_heads,
        kv_heads=kv_heads,
        head_width=head_width,
        vocab_size=_size(config, "vocab_size", where),
        # within the window sliding attention sees everything, so a canvas of that length is computed exactly
        max_positions=min(max_positions, window) if window else max_positions,
        norm_eps=_number(config, "rms_norm_eps", where, default=1e-6),
        rope=_rope(config, where, max_positions),
        has_qkv_bias=FAMILIES[family],
        has_tied_head=bool(config.get("tie_word_embeddings", False)),
        bos_id=next(iter(_token_ids(config, "bos_token_id", where)), None),
        eos_ids=tuple(dict.fromkeys([*_token_ids(config, "eos_token_id", where), *_token_ids(generation, "eos_token_id", where)])),
        name=name,
        mask_id=next(iter(_token_ids(config, "mask_token_id", where)), None),
    )


def names_mask_token(folder: Path) -> bool:
    """Return whether the tokenizer of a checkpoint folder names a mask token."""
    files = ("tokenizer_config.json", "special_tokens_map.json")
    return any(read_json(folder / name, optional=True).get("mask_token") is not None for name in files)


def _refuse_unsupported(config: Mapping[str, Any], where: str) -> None:
    if config.get("quantization_config"):
        given = config["quantization_config"]
        method = given.get("quant_method", "unknown") if isinstance(given, Mapping) else given
        raise CheckpointError(
            f"{where}: weights are quantised ({method}), expected float32, float16 or bfloat16. Use the original model or a GGUF."
        )
    for field in ("attention_bias", "mlp_bias"):
        if config.get(field):
            raise CheckpointError(f"{where}: {field} is true, expected false. Output and MLP projections with biases are not supported.")
    activation = config.get("hidden_act", "silu")
    if activation not in ACTIVATIONS:
        raise CheckpointError(f"{where}: hidden_act is {activation!r}, expected {' or '.join(ACTIVATIONS)}. Choose a SwiGLU model.")


def _sliding_window(config: Mapping[str, Any], where: str) -> int | None:
    """Return the attention window where some layer uses one, else None."""
    is_used = config.get("use_sliding_window", config["model_type"] == "mistral")
    if not is_used or config.get("sliding_window") is None:
        return None
    return _size(config, "sliding_window", where)


def _rope(config: Mapping[str, Any], where: str, max_positions: int) -> RopeFacts:
    """Read rope_parameters (transformers 5) or rope_theta + rope_scaling (before)."""
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(scaling, Mapping):
        raise CheckpointError(f"{where}: rope parameters are {scaling!r}, expected a JSON object. Download config.json again.")
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in ROPE_KINDS:
        raise CheckpointError(
            f"{where}: rope_type is {kind!r}, expected one of {', '.join(ROPE_KINDS)}. Remove the scaling to use the original window."
        )
    share = scaling.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    if share != 1.0:
        raise CheckpointError(f"{where}: partial_rotary_factor is {share}, expected 1. Choose a model that rotates whole heads.")
    theta = _number(scaling if "rope_theta" in scaling else config, "rope_theta", where, default=10000.0)
    if kind == "default":
        return RopeFacts(theta=theta)
    factor = _number(scaling, "factor", where)
    if kind == "linear":
        return RopeFacts(theta=theta, kind=kind, factor=factor)
    low, high = _number(scaling, "low_freq_factor", where), _number(scaling, "high_freq_factor", where)
    if low >= high:
        raise CheckpointError(
            f"{where}: low_freq_factor is {low:g}, expected less than high_freq_factor ({high:g}). Download config.json again."
        )
    original = _size(scaling, "original_max_position_embeddings", where, default=max_positions)
    return RopeFacts(theta=theta, kind=kind, factor=factor, low_freq_factor=low, high_freq_factor=high, original_max_positions=original)


def _size(config: Mapping[str, Any], field: str, where: str, default: int | None = None) -> int:
    value = config.get(field)
    if value is None and default is not None:
        value = default
    if value is None:
        raise CheckpointError(f"{where}: {field} is missing, expected a positive integer. Download config.json again.")
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LARGEST:
        raise CheckpointError(f"{where}: {field} is {value!r}, expected a positive integer. Download config.json again.")
    return value


def _number(config: Mapping[str, Any], field: str, where: str, default: float | None = None) -> float:
    value = config.get(field)
    if value is None and default is not None:
        value = default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < FINITE:
        got = "missing" if value is None else repr(value)
        raise CheckpointError(f"{where}: {field} is {got}, expected a number above 0. Download config.json again.")
    return float(value)


def _token_ids(config: Mapping[str, Any], field: str, where: str) -> list[int]:
    value = config.get(field)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if any(isinstance(i, bool) or not isinstance(i, int) or i > LARGEST for i in ids):
        raise CheckpointError(f"{where}: {field} is {value!r}, expected a token id or a list of them. Download config.json again.")
    # some exporters write -1 for "there is none"
    return [i for i in ids if i >= 0]
