"""Models of known shapes with random weights: speed needs no checkpoint, but zeros would run faster than real numbers do."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from lad_engine.contracts import ModelFacts, RopeFacts
from lad_engine.model.transformer import Transformer

# Sizes from the checkpoints' own config.json; positions are cut to what a canvas uses, which keeps the rotary tables small.
_SIZES = {
    # layers, D, F, H, G, K, V
    "SmolLM2-135M": (30, 576, 1536, 9, 3, 64, 49152),
    "Llama-3.2-1B": (16, 2048, 8192, 32, 8, 64, 128256),
    "Llama-3.2-3B": (28, 3072, 8192, 24, 8, 128, 128256),
    "Llama-3.1-8B": (32, 4096, 14336, 32, 8, 128, 128256),
    "Qwen2.5-7B": (28, 3584, 18944, 28, 4, 128, 152064),
    "Mistral-7B": (32, 4096, 14336, 32, 8, 128, 32768),
    # For dry runs and tests only: every path, no weight.
    "tiny": (2, 64, 160, 4, 2, 16, 512),
}
_LLAMA3_ROPE = RopeFacts(theta=500000.0, kind="llama3", factor=8.0, original_max_positions=8192)
_SMALL_LLAMA3 = {"has_tied_head": True, "rope": dataclasses.replace(_LLAMA3_ROPE, factor=32.0)}
_TRAITS: dict[str, dict[str, Any]] = {
    "SmolLM2-135M": {"has_tied_head": True, "rope": RopeFacts(theta=100000.0)},
    "Llama-3.2-1B": _SMALL_LLAMA3,
    "Llama-3.2-3B": _SMALL_LLAMA3,
    "Llama-3.1-8B": {"rope": _LLAMA3_ROPE},
    "Qwen2.5-7B": {"family": "qwen2", "has_qkv_bias": True, "norm_eps": 1e-6, "rope": RopeFacts(theta=1000000.0)},
    "Mistral-7B": {"family": "mistral", "rope": RopeFacts(theta=1000000.0)},
    "tiny": {"has_tied_head": True, "rope": RopeFacts()},
}


def _facts(name: str) -> ModelFacts:
    layers, width, mlp_width, query_heads, kv_heads, head_width, vocab_size = _SIZES[name]
    common = {"family": "llama", "max_positions": 8192, "norm_eps": 1e-5, "has_qkv_bias": False, "has_tied_head": False}
    sizes = {"layers": layers, "width": width, "mlp_width": mlp_width, "vocab_size": vocab_size}
    heads = {"query_heads": query_heads, "kv_heads": kv_heads, "head_width": head_width}
    return ModelFacts(name=name, bos_id=0, eos_ids=(2,), **{**common, **sizes, **heads, **_TRAITS[name]})


MODELS = {name: _facts(name) for name in _SIZES}
# A piece of the vocabulary that stands for MASK; random weights give it no meaning.
MASK_ID = 1


def random_model(facts: ModelFacts, ops: Any, dtype: torch.dtype, device: str, seed: int = 0) -> Transformer:
    """Return a decoder of `facts` whose weights are drawn on `device`, with no copy through the host.

    Weights are normal with variance 1 / inputs and norms are near 1, so that activations and logits keep their scale through the layers.
    """
    model = Transformer(facts, ops, dtype, device)
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for name, slot in model.slots().items():
            if slot.ndim == 2:
                slot.normal_(0.0, slot.shape[1] ** -0.5, generator=generator)
            else:
                is_norm = name.endswith("norm.weight")
                slot.normal_(1.0 if is_norm else 0.0, 0.1, generator=generator)
    return model.eval()


def random_ids(facts: ModelFacts, batch: int, length: int, seed: int = 0) -> torch.Tensor:
    """Return token ids `[B, T]` int64 on the host, none of them special."""
    return torch.randint(8, facts.vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed))


def weight_bytes(facts: ModelFacts, element_bytes: int = 2) -> int:
    """Return the bytes of all weights one forward pass reads, head included, embedding rows left out."""
    kv = facts.kv_heads * facts.head_width
    q = facts.query_heads * facts.head_width
    layer = facts.width * (2 * q + 2 * kv + 3 * facts.mlp_width)
    return (facts.layers * layer + facts.vocab_size * facts.width) * element_bytes


def step_flops(facts: ModelFacts, batch: int, canvas: int, answer_rows: int) -> int:
    """Return the multiply-adds x 2 of one denoising step: projections, bidirectional attention, head on the answer rows."""
    kv, q = facts.kv_heads * facts.head_width, facts.query_heads * facts.head_width
    projections = facts.width * (2 * q + 2 * kv + 3 * facts.mlp_width)
    layer = 2 * canvas * projections + 4 * canvas * canvas * q
    return batch * (facts.layers * layer + 2 * answer_rows * facts.vocab_size * facts.width)
