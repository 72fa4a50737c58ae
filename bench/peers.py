"""transformers' own model over the same weights: eager, compiled, or as the authors call it."""

from __future__ import annotations

from collections.abc import Callable

import torch
import transformers
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lad_engine.contracts import ModelFacts
from lad_engine.model.transformer import Transformer


def transformers_model(ours: Transformer, dtype: torch.dtype, device: str, is_causal: bool = False) -> nn.Module:
    """Return transformers' model of the same facts whose parameters are ours, in the same memory; bidirectional unless `is_causal`."""
    config = transformers_config(ours.facts)
    with torch.device(device):
        theirs = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    slots = ours.slots()
    for name, parameter in theirs.named_parameters():
        parameter.data = slots[name] if name in slots else slots["model.embed_tokens.weight"]
    # What its attention asks where there is no mask tensor.
    for layer in theirs.model.layers:
        layer.self_attn.is_causal = is_causal
    return theirs.eval()


def transformers_config(facts: ModelFacts) -> transformers.PretrainedConfig:
    """Return the config.json of `facts` as transformers reads it."""
    rope = facts.rope
    parameters = {"rope_type": rope.kind, "rope_theta": rope.theta}
    if rope.kind != "default":
        parameters["factor"] = rope.factor
    if rope.kind == "llama3":
        parameters.update(
            low_freq_factor=rope.low_freq_factor,
            high_freq_factor=rope.high_freq_factor,
            original_max_position_embeddings=rope.original_max_positions,
        )
    more = {"sliding_window": None} if facts.family == "mistral" else {}
    return transformers.AutoConfig.for_model(
        facts.family,
        hidden_size=facts.width,
        intermediate_size=facts.mlp_width,
        num_hidden_layers=facts.layers,
        num_attention_heads=facts.query_heads,
        num_key_value_heads=facts.kv_heads,
        head_dim=facts.head_width,
        vocab_size=facts.vocab_size,
        max_position_embeddings=facts.max_positions,
        rms_norm_eps=facts.norm_eps,
        rope_parameters=parameters,
        tie_word_embeddings=facts.has_tied_head,
        bos_token_id=facts.bos_id,
        eos_token_id=list(facts.eos_ids),
        pad_token_id=facts.eos_ids[0],
        **more,
    )


def bidirectional_logits(theirs: nn.Module, ids: Tensor, answer_rows: int) -> Tensor:
    """Return logits `[B, answer_rows, V]` of the last positions, through transformers' own layers without any mask tensor.

    The model's forward would make one where it is compiled, in some versions, which keeps the fast attention kernels away.
    """
    model = theirs.model
    x = model.embed_tokens(ids)
    positions = torch.arange(ids.shape[1], device=ids.device)[None]
    tables = model.rotary_emb(x, position_ids=positions)
    for layer in model.layers:
        x = layer(x, attention_mask=None, position_ids=positions, position_embeddings=tables, use_cache=False)
    return theirs.lm_head(model.norm(x)[:, -answer_rows:])


def forward_of(theirs: nn.Module, ids: Tensor, answer_rows: int) -> Callable[[], Tensor]:
    """Return a call of one bidirectional forward pass with logits of the last `answer_rows` positions only."""

    @torch.inference_mode()
    def run() -> Tensor:
        return bidirectional_logits(theirs, ids, answer_rows)

    return run


def authors_forward(theirs: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the forward the authors' loop takes: logits of all positions under an additive mask of ones."""

    def run(ids: Tensor, mask: Tensor) -> Tensor:
        return theirs(input_ids=ids, attention_mask=mask.to(theirs.dtype), use_cache=False).logits

    return run


def compiled_forward(theirs: nn.Module, ids: Tensor, answer_rows: int, temperature: float, top_k: int) -> Callable[[], Tensor]:
    """Return a compiled step: forward, then top-k, softmax and a draw, as one `torch.compile(max-autotune)` call on static inputs.

    On a GPU cuDNN's attention comes first, then flash; timed by `graph_us`, it becomes a CUDA graph like ours.
    """

    def step(ids: Tensor) -> Tensor:
        logits = bidirectional_logits(theirs, ids, answer_rows)
        values, candidates = torch.topk(logits, top_k, dim=-1)
        weights = torch.softmax(values.float() / temperature, -1)
        # The exponential race draws from the same distribution as multinomial without its host checks.
        drawn = (weights / torch.empty_like(weights).exponential_()).argmax(-1, keepdim=True)
        return candidates.gather(-1, drawn)[..., 0]

    compiled = torch.compile(step, mode="max-autotune-no-cudagraphs", fullgraph=False, dynamic=False)

    @torch.inference_mode()
    def run() -> Tensor:
        if ids.is_cuda:
            with sdpa_kernel([SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION], set_priority=True):
                return compiled(ids)
        return compiled(ids)

    return run
