"""How published checkpoints name their config fields and tensors, mapped to the names the decoders use."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..errors import CheckpointError
from ..families import WRAPPER

# config.json of LLaDA (an OLMo description) and of GPT-2: our name -> theirs.
LLADA_FIELDS = {
    "hidden_size": "d_model",
    "intermediate_size": "mlp_hidden_size",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "num_key_value_heads": "n_kv_heads",
    "max_position_embeddings": "max_sequence_length",
    "tie_word_embeddings": "weight_tying",
    "hidden_act": "activation_type",
}
GPT2_FIELDS = {
    "hidden_size": "n_embd",
    "intermediate_size": "n_inner",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
    "rms_norm_eps": "layer_norm_epsilon",
}
# What must hold for our decoders to compute these checkpoints; an absent field has this value.
LLADA_NEEDS = {
    "block_type": "llama",
    "layer_norm_type": "rms",
    "rope": True,
    "alibi": False,
    "include_bias": False,
    "include_qkv_bias": False,
    "input_emb_norm": False,
    "scale_logits": False,
    "attention_layer_norm": False,
}
GPT2_NEEDS = {
    "activation_function": "gelu_new",
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}
LLADA_BLOCK = {
    "attn_norm": "input_layernorm",
    "ff_norm": "post_attention_layernorm",
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "attn_out": "self_attn.o_proj",
    "ff_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "ff_out": "mlp.down_proj",
}
LLADA_TOP = {
    "model.transformer.wte.weight": "model.embed_tokens.weight",
    "model.transformer.ln_f.weight": "model.norm.weight",
    "model.transformer.ff_out.weight": "lm_head.weight",
}
# Buffers that old exporters stored: they follow from the config. GPT-2's are its causal mask, which we do not apply. L2D's flow path
# also stores the base's weights that it shares.
IGNORED = re.compile(
    r"(model\.layers\.\d+\.self_attn\.rotary_emb|model\.rotary_emb)\.inv_freq|transformer\.h\.\d+\.attn\.(masked_)?bias"
    r"|model\.layers\.\d+\.(self_attn|mlp)\.flow_\w+_proj\.wrapped_layer\.(weight|bias)"
)
CONV1D = re.compile(r"transformer\.h\.\d+\.(attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.weight")


def plain_config(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return config.json with the field names of a Hugging Face Llama.

    Raises:
        CheckpointError: the checkpoint computes something our decoders do not.
    """
    kind = config.get("model_type")
    if kind not in ("llada", "gpt2"):
        return dict(config)
    fields, needs = (LLADA_FIELDS, LLADA_NEEDS) if kind == "llada" else (GPT2_FIELDS, GPT2_NEEDS)
    for name, wanted in needs.items():
        if config.get(name, wanted) != wanted:
            raise CheckpointError(f"{where}: {name} is {config[name]!r}, expected {wanted!r}. This decoder computes no other {kind} model.")
    plain = {**config, **{ours: config[theirs] for ours, theirs in fields.items() if config.get(theirs) is not None}}
    if kind == "llada":
        # The embedding may be padded beyond the vocabulary.
        return {**plain, "vocab_size": config.get("embedding_size") or config.get("vocab_size")}
    width = plain.get("hidden_size")
    if isinstance(width, int):
        plain.setdefault("intermediate_size", 4 * width)
    return {"rms_norm_eps": 1e-5, "tie_word_embeddings": True, **plain, "hidden_act": "silu"}


def plain_names(stored: list[str], family: str) -> dict[str, str]:
    """Return our name -> stored name of every tensor a decoder of this family reads.

    The wrapper of DiffuGPT and DiffuLLaMA (`embed_tokens`, `denoise_model.*`, `lm_head`) also keeps the whole model a second time under
    `model.*`, which is left out; of a tied pair either name may be missing.
    """
    is_wrapped = any(name.startswith(WRAPPER) for name in stored)
    if is_wrapped:
        stored = [name for name in stored if not name.startswith("model.")]
    out = {}
    for name in stored:
        plain = _plain_name(name, family, is_wrapped)
        if IGNORED.fullmatch(plain) is None:
            out[plain] = name
    embedding = "transformer.wte.weight" if family == "gpt2" else "model.embed_tokens.weight"
    if is_wrapped and embedding not in out and "lm_head.weight" in out:
        out[embedding] = out.pop("lm_head.weight")
    return out


def is_transposed(name: str, family: str) -> bool:
    """Return whether a checkpoint stores this weight as `[in, out]` (GPT-2's Conv1D)."""
    return family == "gpt2" and CONV1D.fullmatch(name) is not None


def _plain_name(name: str, family: str, is_wrapped: bool) -> str:
    root = "transformer" if family == "gpt2" else "model"
    if is_wrapped:
        if name.startswith(WRAPPER):
            return f"{root}.{name.removeprefix(WRAPPER)}"
        table = {"embed_tokens.weight": "transformer.wte.weight" if family == "gpt2" else "model.embed_tokens.weight"}
        return table.get(name, name)
    if family == "gpt2" and name.startswith(("h.", "wte.", "wpe.", "ln_f.")):
        # The base model saved without its head has no prefix.
        return f"transformer.{name}"
    if family == "llada":
        block = re.fullmatch(r"model\.transformer\.blocks\.(\d+)\.(\w+)\.weight", name)
        if block and block[2] in LLADA_BLOCK:
            return f"model.layers.{block[1]}.{LLADA_BLOCK[block[2]]}.weight"
        return LLADA_TOP.get(name, name)
    return name
