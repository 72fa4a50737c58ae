"""Tiny random checkpoints in the published layouts of masked diffusion models: `python tests/tiny_families.py FOLDER` writes them all.

Each decodes at once, for example `python -m lad_engine.generate --model FOLDER/dream "the user"`. Sizes, vocabulary and tokenizer are
those of `tiny_checkpoint`; the mask is its piece "MASK".
    diffugpt    GPT-2 behind the wrapper: embed_tokens, denoise_model.h.*, lm_head, a second copy under model.*, Conv1D weights
    diffullama  a plain Llama whose tokenizer names a mask token
    llada       OLMo names: model.transformer.blocks.*, ff_proj/up_proj/ff_out, mask_token_id in config.json
    dream       Qwen2 names and biases, model_type Dream, mask_token_id in config.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from tiny_checkpoint import MASK_PIECE, VOCAB_SIZE, save_sharded, save_tokenizer, tiny_config, tiny_tensors, tokenizer_pieces

FAMILIES = ("diffugpt", "diffullama", "llada", "dream")
MASK_ID = tokenizer_pieces().index(MASK_PIECE)
LLADA_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ff_norm",
    "self_attn.q_proj": "q_proj",
    "self_attn.k_proj": "k_proj",
    "self_attn.v_proj": "v_proj",
    "self_attn.o_proj": "attn_out",
    "mlp.gate_proj": "ff_proj",
    "mlp.up_proj": "up_proj",
    "mlp.down_proj": "ff_out",
}
LLADA_TOP = {
    "model.embed_tokens.weight": "model.transformer.wte.weight",
    "model.norm.weight": "model.transformer.ln_f.weight",
    "lm_head.weight": "model.transformer.ff_out.weight",
}


def make_family(folder: str | Path, name: str, seed: int = 0, **config: object) -> Path:
    """Write one of FAMILIES and return its folder; `config` overrides fields of config.json."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    settings, tensors = {"diffugpt": _gpt2, "diffullama": _llama, "llada": _llada, "dream": _dream}[name](seed, config)
    (folder / "config.json").write_text(json.dumps(settings, indent=2))
    save_tokenizer(folder)
    if name in ("diffugpt", "diffullama"):
        path = folder / "tokenizer_config.json"
        fields = {**json.loads(path.read_text()), "mask_token": MASK_PIECE}
        # Neither has a chat template: they continue plain text.
        del fields["chat_template"]
        path.write_text(json.dumps(fields, indent=2))
    if name == "diffugpt":
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        save_sharded(folder, tensors, shards=2)
    return folder


def gpt2_tensors(settings: dict, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return random tensors by the names of GPT2LMHeadModel, linear weights `[in, out]` as its Conv1D keeps them."""
    generator = torch.Generator().manual_seed(seed)
    D, layers = settings["n_embd"], settings["n_layer"]

    def normal(*shape: int, scale: float) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * scale

    tensors = {
        "transformer.wte.weight": normal(settings["vocab_size"], D, scale=0.5),
        "transformer.wpe.weight": normal(settings["n_positions"], D, scale=0.3),
        "transformer.ln_f.weight": 1 + normal(D, scale=0.1),
        "transformer.ln_f.bias": normal(D, scale=0.1),
    }
    for layer in range(layers):
        prefix = f"transformer.h.{layer}."
        for part, into, out in (("attn.c_attn", D, 3 * D), ("attn.c_proj", D, D), ("mlp.c_fc", D, 4 * D), ("mlp.c_proj", 4 * D, D)):
            tensors[f"{prefix}{part}.weight"] = normal(into, out, scale=into**-0.5)
            tensors[f"{prefix}{part}.bias"] = normal(out, scale=0.1)
        for part in ("ln_1", "ln_2"):
            tensors[f"{prefix}{part}.weight"], tensors[f"{prefix}{part}.bias"] = 1 + normal(D, scale=0.1), normal(D, scale=0.1)
    return tensors


def gpt2_config(**changes: object) -> dict:
    """Return the config.json of a tiny GPT-2."""
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 256,
        "n_inner": None,
        "vocab_size": VOCAB_SIZE,
        "layer_norm_epsilon": 1e-5,
        "activation_function": "gelu_new",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 256}},
        **changes,
    }


def _gpt2(seed: int, changes: dict) -> tuple[dict, dict[str, torch.Tensor]]:
    settings = gpt2_config(**changes)
    plain = gpt2_tensors(settings, seed)
    wrapped = {"embed_tokens.weight": plain["transformer.wte.weight"], "lm_head.weight": plain["transformer.wte.weight"].clone()}
    for name, tensor in plain.items():
        inner = name.removeprefix("transformer.")
        if inner != "wte.weight":
            wrapped[f"denoise_model.{inner}"] = tensor
        # The wrapper keeps the model it was built from, too.
        wrapped[f"model.transformer.{inner}"] = tensor.clone()
    for layer in range(settings["n_layer"]):
        wrapped[f"denoise_model.h.{layer}.attn.bias"] = torch.ones(1, 1, 4, 4, dtype=torch.bool)
        wrapped[f"denoise_model.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    return settings, wrapped


def _llama(seed: int, changes: dict) -> tuple[dict, dict[str, torch.Tensor]]:
    settings = tiny_config("llama", tie=False, num_key_value_heads=4, **changes)
    return settings, tiny_tensors(settings, seed=seed)


def _dream(seed: int, changes: dict) -> tuple[dict, dict[str, torch.Tensor]]:
    settings = tiny_config("qwen2", tie=False)
    tensors = tiny_tensors(settings, seed=seed)
    own = {"model_type": "Dream", "architectures": ["DreamModel"], "mask_token_id": MASK_ID, "pad_token_id": 0}
    return {**settings, **own, **changes}, tensors


def _llada(seed: int, changes: dict) -> tuple[dict, dict[str, torch.Tensor]]:
    plain = tiny_config("llama", tie=False, num_key_value_heads=4)
    settings = {
        "model_type": "llada",
        "architectures": ["LLaDAModelLM"],
        "d_model": plain["hidden_size"],
        "mlp_hidden_size": plain["intermediate_size"],
        "n_layers": plain["num_hidden_layers"],
        "n_heads": plain["num_attention_heads"],
        "n_kv_heads": plain["num_key_value_heads"],
        "max_sequence_length": plain["max_position_embeddings"],
        "vocab_size": VOCAB_SIZE - 8,
        "embedding_size": VOCAB_SIZE,
        "rms_norm_eps": 1e-5,
        "rope": True,
        "rope_theta": 500000.0,
        "activation_type": "silu",
        "block_type": "llama",
        "layer_norm_type": "rms",
        "include_bias": False,
        "include_qkv_bias": False,
        "weight_tying": False,
        "mask_token_id": MASK_ID,
        "eos_token_id": 2,
        **changes,
    }
    tensors = {}
    for name, tensor in tiny_tensors(plain, seed=seed).items():
        if name.startswith("model.layers."):
            layer, part = name.removeprefix("model.layers.").removesuffix(".weight").split(".", 1)
            tensors[f"model.transformer.blocks.{layer}.{LLADA_NAMES[part]}.weight"] = tensor
        else:
            tensors[LLADA_TOP[name]] = tensor
    return settings, tensors


if __name__ == "__main__":
    for family in FAMILIES:
        print(make_family(Path(sys.argv[1]) / family, family))
