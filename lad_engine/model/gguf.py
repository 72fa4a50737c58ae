"""Convert a GGUF file once into a Hugging Face folder in the cache: config.json, tokenizer files, model.safetensors.

Reading a GGUF takes many seconds at every start, the converted folder well under one. Tensors are dequantised one at a time by the
`gguf` package (as transformers does, but without building a model first) and written as they come.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..errors import CheckpointError
from .cache import Progress, build_once, cache_root

if TYPE_CHECKING:
    from gguf import GGUFReader, ReaderTensor

# part of the cache key: raised when the conversion writes something else than before
CONVERTER_VERSION = 1
ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}
# llama.cpp stores q and k of these with the two halves of each head interleaved
PERMUTED = ("llama",)
GLOBAL_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
ROPE_FACTORS = "rope_freqs.weight"
# unquantised tensors keep their type, everything else becomes bf16
STORED_DTYPES = ("F32", "F16")
BYTES_PER_VALUE = {"F32": 4, "F16": 2, "BF16": 2}


def gguf_folder(path: Path, progress: Progress | None = None) -> Path:
    """Return the cached Hugging Face folder of a GGUF file, converting it when it is new or has changed.

    Raises:
        CheckpointError: the file is damaged or of an architecture we do not compute.
        DownloadError: the cache cannot be written, or the disk is full.
    """
    state = path.stat()
    identity = f"{path.resolve()} {state.st_size} {state.st_mtime_ns} {CONVERTER_VERSION}"
    key = f"{path.stem}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
    return build_once(cache_root() / "models" / key, lambda folder: convert_gguf(path, folder, progress), progress)


def convert_gguf(path: Path, folder: Path, progress: Progress | None = None) -> None:
    """Write config.json, the tokenizer files and model.safetensors of a GGUF file into `folder`."""
    if progress is not None:
        progress(f"reading {path.name}", 0, 0)
    reader = _read(path)
    config = gguf_config(reader, path)
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    _write_tensors(reader, config, path, folder / "model.safetensors", progress)
    if progress is not None:
        progress(f"rebuilding the tokenizer of {path.name}", 0, 0)
    _write_tokenizer(path, folder)


def gguf_config(reader: GGUFReader, path: Path) -> dict[str, Any]:
    """Return the config.json that describes the model in a GGUF file."""
    architecture = _field(reader, path, "general.architecture")
    if architecture not in ARCHITECTURES:
        raise CheckpointError(
            f"{path}: general.architecture is {architecture!r}, expected one of {', '.join(ARCHITECTURES)}. Choose such a model."
        )

    def field(name: str, default: Any = None) -> Any:
        return _field(reader, path, f"{architecture}.{name}", default)

    if field("expert_count", 0):
        raise CheckpointError(f"{path}: expert_count is {field('expert_count')}, expected 0. Choose a model without mixture of experts.")
    names = {tensor.name for tensor in reader.tensors}
    if "token_embd.weight" not in names:
        raise CheckpointError(f"{path}: token_embd.weight is missing, expected the tensors of a language model. Download it again.")
    width, heads = field("embedding_length"), field("attention.head_count")
    head_width = field("attention.key_length", width // heads)
    config = {
        "model_type": architecture,
        "architectures": [ARCHITECTURES[architecture]],
        "hidden_size": width,
        "intermediate_size": field("feed_forward_length"),
        "num_hidden_layers": field("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": field("attention.head_count_kv", heads),
        "head_dim": head_width,
        "partial_rotary_factor": field("rope.dimension_count", head_width) / head_width,
        "max_position_embeddings": field("context_length"),
        "rms_norm_eps": field("attention.layer_norm_rms_epsilon"),
        "hidden_act": "silu",
        "tie_word_embeddings": "output.weight" not in names,
        "vocab_size": int(next(tensor.shape[1] for tensor in reader.tensors if tensor.name == "token_embd.weight")),
        "bos_token_id": _field(reader, path, "tokenizer.ggml.bos_token_id", -1),
        "rope_parameters": _rope(reader, path, architecture),
        "torch_dtype": "bfloat16",
    }
    ends = [_field(reader, path, f"tokenizer.ggml.{name}_token_id", -1) for name in ("eos", "eot")]
    config["eos_token_id"] = list(dict.fromkeys(end for end in ends if end >= 0))
    return config


def hugging_face_name(name: str) -> str | None:
    """Translate a GGUF tensor name; None when it is no part of a model we compute."""
    base, _, suffix = name.rpartition(".")
    if base in GLOBAL_NAMES:
        return f"{GLOBAL_NAMES[base]}.{suffix}"
    parts = base.split(".")
    if len(parts) == 3 and parts[0] == "blk" and parts[1].isdigit() and parts[2] in LAYER_NAMES:
        return f"model.layers.{parts[1]}.{LAYER_NAMES[parts[2]]}.{suffix}"
    return None


def deinterleave_heads(weights: np.ndarray, heads: int) -> np.ndarray:
    """Undo llama.cpp's row order of q and k: within each head, rows (0, K/2, 1, K/2+1, ...) become (0, 1, ..., K-1)."""
    pairs = weights.reshape(heads, weights.shape[0] // heads // 2, 2, *weights.shape[1:])
    return pairs.swapaxes(1, 2).reshape(weights.shape)


def _read(path: Path) -> GGUFReader:
    # Here, not above: a machine that only reads safetensors (a GPU box without network) need not have it.
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise CheckpointError(f"{path}: the package gguf is missing, expected it to read this file. Run pip install gguf.") from error
    try:
        reader = GGUFReader(path)
    # the reader checks nothing before it indexes into the file, so a damaged one fails in many ways
    except (ValueError, IndexError, KeyError, OverflowError, TypeError, MemoryError, OSError) as error:
        raise CheckpointError(f"{path}: is not a complete GGUF file ({type(error).__name__}: {error}). Download it again.") from error
    size = path.stat().st_size
    ends_at = max((int(tensor.data_offset) + int(tensor.n_bytes) for tensor in reader.tensors), default=0)
    if not reader.tensors or ends_at > size:
        raise CheckpointError(f"{path}: is {size} bytes, expected at least {ends_at} with tensors. Download it again.")
    return reader


def _values(tensor: ReaderTensor) -> np.ndarray:
    from gguf import dequantize

    return dequantize(tensor.data, tensor.tensor_type)


def _field(reader: GGUFReader, path: Path, name: str, default: Any = None) -> Any:
    field = reader.get_field(name)
    if field is None and default is None:
        raise CheckpointError(f"{path}: {name} is missing, expected it in the file's header. Download the file again.")
    return default if field is None else field.contents()


def _rope(reader: GGUFReader, path: Path, architecture: str) -> dict[str, Any]:
    theta = _field(reader, path, f"{architecture}.rope.freq_base", 10000.0)
    for tensor in reader.tensors:
        if tensor.name == ROPE_FACTORS:
            return _llama3_rope(_values(tensor).reshape(-1), theta, path)
    kind = _field(reader, path, f"{architecture}.rope.scaling.type", "none")
    if kind == "none":
        return {"rope_type": "default", "rope_theta": theta}
    return {"rope_type": kind, "rope_theta": theta, "factor": _field(reader, path, f"{architecture}.rope.scaling.factor", 1.0)}


def _llama3_rope(divisors: np.ndarray, theta: float, path: Path) -> dict[str, Any]:
    """Find the Llama 3 scaling whose per-frequency divisors the file stores instead of its parameters."""
    factor, low, high = float(divisors.max()), 1.0, 4.0
    frequencies = theta ** -(np.arange(divisors.size) / divisors.size)
    for exponent in range(5, 21):
        # position of each frequency between "turns `low` times within the original window" (0) and "`high` times" (1)
        turns = 2**exponent * frequencies / (2 * math.pi)
        smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
        if np.allclose(1.0 / ((1.0 - smooth) / factor + smooth), divisors, rtol=1e-4):
            return {
                "rope_type": "llama3",
                "rope_theta": theta,
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": 2**exponent,
            }
    raise CheckpointError(
        f"{path}: {ROPE_FACTORS} is not a Llama 3 frequency scaling, expected one. Use the model's safetensors files instead."
    )


def _write_tensors(reader: GGUFReader, config: dict[str, Any], path: Path, target: Path, progress: Progress | None) -> None:
    """Write all tensors as one safetensors file, holding one at a time (the format: header length, JSON header, raw values)."""
    named: list[tuple[str, ReaderTensor]] = []
    for tensor in reader.tensors:
        name = hugging_face_name(tensor.name)
        if name is None and tensor.name != ROPE_FACTORS:
            raise CheckpointError(f"{path}: {tensor.name} is not part of a {config['model_type']} model we compute. Choose another model.")
        if name is not None:
            named.append((name, tensor))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in named:
        dtype = tensor.tensor_type.name if tensor.tensor_type.name in STORED_DTYPES else "BF16"
        start, end = end, end + int(tensor.n_elements) * BYTES_PER_VALUE[dtype]
        # GGUF lists the fastest axis first
        header[name] = {"dtype": dtype, "shape": [int(size) for size in reversed(tensor.shape)], "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with target.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for name, tensor in named:
            file.write(_stored_bytes(name, tensor, config))
            if progress is not None:
                progress(f"converting {path.name}", header[name]["data_offsets"][1], end)


def _stored_bytes(name: str, tensor: ReaderTensor, config: dict[str, Any]) -> bytes:
    """Return the values of one tensor as they are stored: little-endian, in Hugging Face's row order."""
    weights = np.ascontiguousarray(_values(tensor))
    if config["model_type"] in PERMUTED and ".q_proj." in name:
        weights = deinterleave_heads(weights, config["num_attention_heads"])
    if config["model_type"] in PERMUTED and ".k_proj." in name:
        weights = deinterleave_heads(weights, config["num_key_value_heads"])
    if tensor.tensor_type.name in STORED_DTYPES:
        wanted = np.float32 if tensor.tensor_type.name == "F32" else np.float16
        return np.ascontiguousarray(weights, dtype=wanted).tobytes()
    values = torch.from_numpy(np.array(weights, dtype=np.float32, order="C"))
    return values.to(torch.bfloat16).view(torch.int16).numpy().tobytes()


def _write_tokenizer(path: Path, folder: Path) -> None:
    """Rebuild the tokenizer with transformers, the only part of the file it is better at than we are."""
    # imported here because it costs every start 1 to 2 s, and only a conversion needs it
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
        tokenizer.save_pretrained(folder)
    except OSError:
        raise
    # whatever fails inside transformers here, the caller needs to know which file has no usable tokenizer
    except Exception as error:
        raise CheckpointError(f"{path}: its tokenizer cannot be rebuilt ({error}). Use the model's Hugging Face folder instead.") from error
