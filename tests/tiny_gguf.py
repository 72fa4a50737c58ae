"""Tiny GGUF files made from tiny checkpoints, so the conversion is tested without a download."""

from __future__ import annotations

import math
from pathlib import Path

import gguf
import numpy as np
import torch

from tiny_checkpoint import CHAT_TEMPLATE, MERGES, SPECIAL_TOKENS, tiny_config, tiny_tensors, tokenizer_pieces

LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_tiny_gguf(path: Path, family: str = "smollm2", kind: str = "F32", seed: int = 0, **changes: object) -> dict[str, torch.Tensor]:
    """Write a tiny `family` model as GGUF, matrices in `kind` ("F32", "F16", "Q8_0", "Q4_1"), and return its exact tensors.

    The returned tensors carry Hugging Face names and the values that dequantising the file gives.
    """
    settings = tiny_config(family, **{"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, **changes})
    architecture = settings["model_type"]
    writer = gguf.GGUFWriter(path, architecture)
    _write_header(writer, settings)
    exact = {}
    for name, tensor in tiny_tensors(settings, seed=seed).items():
        values = tensor.numpy()
        quantisation = gguf.GGMLQuantizationType[kind if values.ndim == 2 else "F32"]
        stored = gguf.quantize(interleave(values, name, settings) if architecture == "llama" else values, quantisation)
        writer.add_tensor(gguf_name(name), stored, raw_dtype=quantisation)
        exact[name] = torch.from_numpy(np.array(gguf.dequantize(gguf.quantize(values, quantisation), quantisation), dtype=np.float32))
    if "rope_scaling" in settings:
        writer.add_tensor("rope_freqs.weight", llama3_divisors(settings))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return exact


def gguf_name(name: str) -> str:
    """Translate a Hugging Face tensor name."""
    for ours, theirs in (("model.embed_tokens", "token_embd"), ("model.norm", "output_norm"), ("lm_head", "output")):
        if name.startswith(ours):
            return name.replace(ours, theirs)
    layer, module = name.removeprefix("model.layers.").split(".", 1)
    base, suffix = module.rsplit(".", 1)
    return f"blk.{layer}.{LAYER_NAMES[base]}.{suffix}"


def interleave(values: np.ndarray, name: str, settings: dict) -> np.ndarray:
    """Put the rows of q and k in llama.cpp's order: row i of a head's first half, row i of its second half, row i + 1, ..."""
    if ".q_proj." in name:
        heads = settings["num_attention_heads"]
    elif ".k_proj." in name:
        heads = settings["num_key_value_heads"]
    else:
        return values
    head_width = values.shape[0] // heads
    order = [head * head_width + half * head_width // 2 + i for head in range(heads) for i in range(head_width // 2) for half in (0, 1)]
    return np.ascontiguousarray(values[order])


def llama3_divisors(settings: dict) -> np.ndarray:
    """Divide each rotary frequency as Llama 3 does, written frequency by frequency from its wavelength."""
    scaling, head_width = settings["rope_scaling"], settings["hidden_size"] // settings["num_attention_heads"]
    original = scaling["original_max_position_embeddings"]
    divisors = []
    for i in range(head_width // 2):
        wavelength = 2 * math.pi * settings["rope_theta"] ** (2 * i / head_width)
        if wavelength < original / scaling["high_freq_factor"]:
            divisors.append(1.0)
        elif wavelength > original / scaling["low_freq_factor"]:
            divisors.append(scaling["factor"])
        else:
            smooth = (original / wavelength - scaling["low_freq_factor"]) / (scaling["high_freq_factor"] - scaling["low_freq_factor"])
            divisors.append(1.0 / ((1.0 - smooth) / scaling["factor"] + smooth))
    return np.array(divisors, dtype=np.float32)


def _write_header(writer: gguf.GGUFWriter, settings: dict) -> None:
    writer.add_name("Tiny")
    writer.add_block_count(settings["num_hidden_layers"])
    writer.add_context_length(settings["max_position_embeddings"])
    writer.add_embedding_length(settings["hidden_size"])
    writer.add_feed_forward_length(settings["intermediate_size"])
    writer.add_head_count(settings["num_attention_heads"])
    writer.add_head_count_kv(settings["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(settings["rms_norm_eps"])
    writer.add_rope_freq_base(settings.get("rope_theta") or settings["rope_parameters"]["rope_theta"])
    writer.add_vocab_size(settings["vocab_size"])
    pieces = tokenizer_pieces()
    padding = [f"<|pad{i}|>" for i in range(settings["vocab_size"] - len(pieces))]
    control, normal, unused = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL, gguf.TokenType.UNUSED
    types = [control] * len(SPECIAL_TOKENS) + [normal] * (len(pieces) - len(SPECIAL_TOKENS)) + [unused] * len(padding)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([*pieces, *padding])
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(pair) for pair in MERGES])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_eot_token_id(3)
    writer.add_chat_template(CHAT_TEMPLATE)
