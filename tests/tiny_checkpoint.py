"""Tiny random Hugging Face checkpoints with a working tokenizer, so every room can be tested without a download.

All families: width 64 (smollm2: 48), 2 layers, vocabulary of 320 ids (the tokenizer uses fewer). In every tokenizer "MASK" is one token and
"HOLE" is two; ids 0 to 4 are <|endoftext|> <|im_start|> <|im_end|> <|eot|> <|reserved|>; bos 1, eos 2 (the llama3 family: 2 and 3).
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

VOCAB_SIZE = 320
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|eot|>", "<|reserved|>")
MASK_PIECE = "MASK"
TWO_TOKEN_PIECE = "HOLE"
MERGES = (
    ("M", "A"), ("S", "K"), ("MA", "SK"), ("H", "O"), ("L", "E"), ("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("i", "n"), ("e", "r"),
    ("o", "u"), ("a", "n"), ("Ġ", "a"), ("Ġ", "s"), ("r", "e"), ("o", "n"), ("Ġ", "w"), ("i", "s"), ("Ġ", "is"), ("u", "s"), ("us", "er"),
)  # fmt: skip
CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe tiny.<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FAMILIES = {
    # rope in the form transformers wrote before version 5
    "llama": {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "rope_theta": 10000.0},
    "llama3": {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
        "eos_token_id": [2, 3],
    },
    # a head width that is not width / heads, and a window as long as the canvas
    "mistral": {
        "model_type": "mistral",
        "architectures": ["MistralForCausalLM"],
        "rope_theta": 1000000.0,
        "head_dim": 32,
        "sliding_window": 512,
    },
    "qwen2": {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "rope_theta": 1000000.0,
        "use_sliding_window": False,
        "sliding_window": 32,
    },
    # rope in the form of transformers 5, three query heads and one key/value head
    "smollm2": {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "rope_parameters": {"rope_theta": 100000.0, "rope_type": "default"},
        "hidden_size": 48,
        "head_dim": 16,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
    },
}
TIED_BY_DEFAULT = ("smollm2", "qwen2")


def make_tiny(
    folder: str | Path,
    family: str = "llama",
    *,
    tie: bool | None = None,
    shards: int = 1,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    **config: object,
) -> Path:
    """Write a tiny random checkpoint and return its folder.

    Args:
        family: "llama", "llama3" (scaled rope), "mistral", "qwen2" (q/k/v biases) or "smollm2".
        tie: tied head; None takes the family's habit. shards: safetensors files, with an index when more than one.
        config: overrides of config.json fields (sizes included); a value of None removes the field.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    settings = tiny_config(family, tie=tie, dtype=dtype, **config)
    (folder / "config.json").write_text(json.dumps(settings, indent=2))
    eos = {"bos_token_id": settings.get("bos_token_id"), "eos_token_id": settings.get("eos_token_id")}
    (folder / "generation_config.json").write_text(json.dumps(eos))
    save_sharded(folder, tiny_tensors(settings, dtype, seed), shards)
    save_tokenizer(folder)
    return folder


def tiny_config(family: str, *, tie: bool | None = None, dtype: torch.dtype = torch.float32, **changes: object) -> dict:
    """Return the config.json of a tiny `family` checkpoint as a dict."""
    settings = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCAB_SIZE,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": family in TIED_BY_DEFAULT if tie is None else tie,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }
    settings.update(FAMILIES[family])
    settings.update(changes)
    return {name: value for name, value in settings.items() if value is not None}


def tiny_tensors(settings: dict, dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return random tensors by Hugging Face name; scaled so that logits differ clearly between tokens and positions."""
    generator = torch.Generator().manual_seed(seed)
    width, mlp_width, heads = settings["hidden_size"], settings["intermediate_size"], settings["num_attention_heads"]
    kv_heads, head_width = settings["num_key_value_heads"], settings.get("head_dim", width // heads)

    def linear(rows: int, columns: int) -> torch.Tensor:
        return (torch.randn(rows, columns, generator=generator) * columns**-0.5).to(dtype)

    def vector(size: int, centre: float) -> torch.Tensor:
        return (centre + 0.1 * torch.randn(size, generator=generator)).to(dtype)

    tensors = {"model.embed_tokens.weight": (0.5 * torch.randn(settings["vocab_size"], width, generator=generator)).to(dtype)}
    for layer in range(settings["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for name, rows in (("q_proj", heads), ("k_proj", kv_heads), ("v_proj", kv_heads)):
            tensors[f"{prefix}self_attn.{name}.weight"] = linear(rows * head_width, width)
            if settings["model_type"] == "qwen2":
                tensors[f"{prefix}self_attn.{name}.bias"] = vector(rows * head_width, 0.0)
        tensors[f"{prefix}self_attn.o_proj.weight"] = linear(width, heads * head_width)
        tensors[f"{prefix}mlp.gate_proj.weight"] = linear(mlp_width, width)
        tensors[f"{prefix}mlp.up_proj.weight"] = linear(mlp_width, width)
        tensors[f"{prefix}mlp.down_proj.weight"] = linear(width, mlp_width)
        tensors[f"{prefix}input_layernorm.weight"] = vector(width, 1.0)
        tensors[f"{prefix}post_attention_layernorm.weight"] = vector(width, 1.0)
    tensors["model.norm.weight"] = vector(width, 1.0)
    if not settings["tie_word_embeddings"]:
        tensors["lm_head.weight"] = (0.5 * torch.randn(settings["vocab_size"], width, generator=generator)).to(dtype)
    return tensors


def save_sharded(folder: Path, tensors: dict[str, torch.Tensor], shards: int = 1) -> None:
    """Write `tensors` as model.safetensors, or as `shards` files and an index."""
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    weight_map = {name: f"model-{i % shards + 1:05d}-of-{shards:05d}.safetensors" for i, name in enumerate(tensors)}
    for file in sorted(set(weight_map.values())):
        save_file({name: tensors[name] for name, home in weight_map.items() if home == file}, folder / file, metadata={"format": "pt"})
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def tokenizer_pieces() -> list[str]:
    """Return the pieces of the tiny tokenizer in id order: special tokens, the 256 byte pieces, the merged pieces."""
    merged = [left + right for left, right in MERGES]
    return [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet()), *merged]


def save_tokenizer(folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json of a byte-level BPE tokenizer with a chat template."""
    vocab = {piece: index for index, piece in enumerate(tokenizer_pieces())}
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=list(MERGES)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 512,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
