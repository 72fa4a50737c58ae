"""A Llama-family decoder over a whole canvas: bidirectional without a mask tensor, or causal with a cache."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from ..contracts import ModelFacts
from ..errors import AdapterError, CheckpointError
from ..families import TIME_EMBEDDING
from .adapter_rows import AdapterRows
from .head import Head
from .kv_cache import KVCache
from .projection import Projection
from .rope import rope_tables


class DecoderLayer(nn.Module):
    """Attention and MLP of one layer; the residual stream stays outside so that each norm takes its addition along."""

    def __init__(self, facts: ModelFacts, index: int, dtype: torch.dtype, device: torch.device | str) -> None:
        super().__init__()
        D, K, prefix = facts.width, facts.head_width, f"model.layers.{index}"
        q, kv = facts.query_heads * K, facts.kv_heads * K
        attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
        self.facts, self.index, self.prefix = facts, index, prefix
        self.input_norm = _norm(D, dtype, device)
        self.qkv = Projection(
            D, {f"{attention}.q_proj": q, f"{attention}.k_proj": kv, f"{attention}.v_proj": kv}, facts.has_qkv_bias, dtype, device
        )
        self.output = Projection(q, {f"{attention}.o_proj": D}, False, dtype, device)
        self.post_norm = _norm(D, dtype, device)
        self.gate_up = Projection(D, {f"{mlp}.gate_proj": facts.mlp_width, f"{mlp}.up_proj": facts.mlp_width}, False, dtype, device)
        self.down = Projection(facts.mlp_width, {f"{mlp}.down_proj": D}, False, dtype, device)

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None,
        tables: tuple[Tensor, Tensor],
        lengths: Tensor | None,
        cache: KVCache | None,
        is_causal: bool,
        ops: Any,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return (mlp output, residual stream), both `[B, T, D]`; their sum is the layer's output. `mask` as in `masked_attention`."""
        eps = self.facts.norm_eps
        y, h = ops.add_rmsnorm(x, residual, self.input_norm, eps)
        # What attention needs is freed as its method returns: the MLP is the widest moment (`runtime.memory`).
        y = self._attended(y, tables, lengths, cache, is_causal, ops, mask)
        y, h = ops.add_rmsnorm(y, h, self.post_norm, eps)
        # Weights in 8 bits have products of their own, as adapters do that are not merged.
        if self.gate_up.weight.dtype == y.dtype and self.gate_up.is_plain:
            z = ops.gate_up(y, self.gate_up.weight)
        else:
            z = ops.swiglu(self.gate_up(y, ops.lora_linear))
        return self.down(z, ops.lora_linear), h

    def _attended(
        self,
        y: Any,
        tables: tuple[Tensor, Tensor],
        lengths: Tensor | None,
        cache: KVCache | None,
        is_causal: bool,
        ops: Any,
        mask: Tensor | None,
    ) -> Tensor:
        """Return `[B, T, D]`: normed (or quantised) rows through the fused projection, attention and its output."""
        H, G, K = self.facts.query_heads, self.facts.kv_heads, self.facts.head_width
        heads = self.qkv(y, ops.lora_linear)
        heads = heads.view(*heads.shape[:2], H + 2 * G, K)
        if cache is None and not is_causal and mask is None:
            mixed = ops.packed_attention(heads, *tables, H, G, lengths)
        else:
            positional, v = heads.split((H + G, G), dim=2)
            q, k = ops.rotary(positional, *tables).split((H, G), dim=2)
            if cache is not None:
                k, v = cache.extend(self.index, k, v)
            mixed = ops.attention(q, k, v, lengths, is_causal) if mask is None else masked_attention(q, k, v, mask)
        return self.output(mixed.flatten(2), ops.lora_linear)


class Transformer(nn.Module):
    """The decoder of Llama 2/3.x, SmolLM2, Mistral and Qwen2/2.5 checkpoints with fused q/k/v and gate/up weights.

    Construct with `from_tensors`; `projection` and `norm` give the parameters behind a checkpoint's own module names.
    `adapter_rows` says which resident adapter each sequence uses, where an AdapterStore holds several. `time_embed` `[D]` is the vector
    a simplex denoiser adds to its noisy positions, None without one.
    """

    adapter_rows: AdapterRows | None = None
    time_embed: nn.Parameter | None

    def __init__(self, facts: ModelFacts, ops: Any, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.facts, self.ops = facts, ops
        has_time = facts.extra.get("has_time_embedding", False)
        self.register_parameter("time_embed", _norm(facts.width, dtype, device) if has_time else None)
        self.embed = nn.Parameter(torch.empty(facts.vocab_size, facts.width, dtype=dtype, device=device), requires_grad=False)
        self.layers = nn.ModuleList(DecoderLayer(facts, index, dtype, device) for index in range(facts.layers))
        self.head = Head(facts, ops, self.embed if facts.has_tied_head else None, dtype, device)
        cos, sin = rope_tables(facts)
        self.register_buffer("cos", cos.to(device), persistent=False)
        self.register_buffer("sin", sin.to(device), persistent=False)

    @classmethod
    def from_tensors(
        cls,
        facts: ModelFacts,
        tensors: Iterable[tuple[str, Tensor]],
        ops: Any,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Transformer:
        """Fill a decoder from (checkpoint name, tensor) pairs, one tensor in flight at a time.

        Raises:
            CheckpointError: a tensor is unknown, wrongly shaped, or missing; the message names it.
        """
        return fill_from(cls(facts, ops, dtype, device), tensors)

    def forward(
        self,
        ids: Tensor,
        lengths: Tensor | None = None,
        *,
        cache: KVCache | None = None,
        is_causal: bool = False,
        recomputes: bool = False,
        mask: Tensor | None = None,
        embedded: Tensor | None = None,
    ) -> Tensor:
        """Map ids `[B, T]` int64 to hidden states `[B, T, D]` before the final norm.

        lengths: `[B]` on the device where sequences end before T; cache implies causal decoding at the cache's position.
        recomputes: keep only each layer's input for the backward pass (gradient checkpointing).
        mask: `[T, T]` bool, which key each query may see (training with an annealed mask); lengths are then not looked at.
        embedded: `[B, T, D]`, read in place of the embeddings of `ids`.
        Raises:
            CheckpointError: the canvas is longer than the checkpoint's position range.
        """
        start = 0 if cache is None else cache.length
        end = start + ids.shape[1]
        if end > self.facts.max_positions:
            raise CheckpointError(
                f"canvas: {end} positions, expected at most {self.facts.max_positions} (max_position_embeddings of the base)."
            )
        tables = (self.cos[start:end], self.sin[start:end])
        x, residual = nn.functional.embedding(ids, self.embed) if embedded is None else embedded, None
        for layer in self.layers:
            args = (x, residual, tables, lengths, cache, is_causal or cache is not None, self.ops, mask)
            x, residual = recompute(layer, *args, use_reentrant=False) if recomputes else layer(*args)
        if cache is not None:
            cache.length = end
        return x + residual

    def slots(self) -> dict[str, Tensor]:
        """Return the storage of every checkpoint tensor by its Hugging Face name, fused weights as row views."""
        out: dict[str, Tensor] = {"model.embed_tokens.weight": self.embed.data, "model.norm.weight": self.head.norm.data}
        for projection in self.projections():
            for name, (start, stop) in projection.rows.items():
                if projection.weight is self.embed:
                    continue
                out[f"{name}.weight"] = projection.weight.data[start:stop]
                if projection.bias is not None:
                    out[f"{name}.bias"] = projection.bias.data[start:stop]
        for layer in self.layers:
            out[f"{layer.prefix}.input_layernorm.weight"] = layer.input_norm.data
            out[f"{layer.prefix}.post_attention_layernorm.weight"] = layer.post_norm.data
        if self.time_embed is not None:
            out[TIME_EMBEDDING] = self.time_embed.data[:, None]
        return out

    def projection(self, path: str) -> tuple[Projection, int, int]:
        """Return the fused projection behind a module path such as "model.layers.3.self_attn.q_proj" and its rows in it.

        A tied head asked for by name is untied first (one more `[V, D]` weight), so that adapting it leaves the embedding alone.
        Raises:
            AdapterError: no such linear layer.
        """
        for projection in self.projections():
            if path in projection.rows:
                if projection.weight is self.embed:
                    projection.weight = nn.Parameter(self.embed.detach().clone(), requires_grad=False)
                return projection, *projection.rows[path]
        raise AdapterError(
            f"adapter: module {path} is not a linear layer of this base, expected names such as {next(iter(self.layers[0].qkv.rows))}."
        )

    def norm(self, path: str) -> nn.Parameter:
        """Return the `[D]` weight of a norm such as "model.norm" or "model.layers.3.input_layernorm".

        "timestep_embed" is the time vector; a base that has none gets zeros, which change nothing.
        Raises:
            AdapterError: no such norm.
        """
        if f"{path}.weight" == TIME_EMBEDDING:
            if self.time_embed is None:
                self.time_embed = nn.Parameter(torch.zeros_like(self.head.norm), requires_grad=False)
            return self.time_embed
        norms = {"model.norm": self.head.norm}
        for layer in self.layers:
            norms[f"{layer.prefix}.input_layernorm"] = layer.input_norm
            norms[f"{layer.prefix}.post_attention_layernorm"] = layer.post_norm
        if path not in norms:
            raise AdapterError(f"adapter: module {path} is not a norm of this base, expected names such as model.layers.0.input_layernorm.")
        return norms[path]

    def linear_names(self) -> list[str]:
        """Return the module paths of all linear layers, lm_head included."""
        return [name for projection in self.projections() for name in projection.rows]

    def projections(self) -> list[Projection]:
        """Return every fused linear layer, layer by layer, the head's last."""
        return [p for layer in self.layers for p in (layer.qkv, layer.output, layer.gate_up, layer.down)] + [self.head.projection]


def masked_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Attend as the op `attention` does, each query to the keys that `mask` `[T, T]` bool lets it see.

    Args:
        q: `[B, T, H, K]`. k, v: `[B, T, G, K]`.
    """
    parts = (part.transpose(1, 2) for part in (q, k, v))
    return nn.functional.scaled_dot_product_attention(*parts, attn_mask=mask, enable_gqa=q.shape[2] != k.shape[2]).transpose(1, 2)


def _norm(width: int, dtype: torch.dtype, device: torch.device | str) -> nn.Parameter:
    return nn.Parameter(torch.empty(width, dtype=dtype, device=device), requires_grad=False)


def fill_from(model: Any, tensors: Iterable[tuple[str, Tensor]]) -> Any:
    """Copy (checkpoint name, tensor) pairs into a decoder's slots, one tensor in flight at a time, and return it in evaluation mode.

    Raises:
        CheckpointError: a tensor is unknown, wrongly shaped, or missing; the message names it.
    """
    facts, slots = model.facts, model.slots()
    missing = set(slots)
    with torch.no_grad():
        for name, tensor in tensors:
            if name not in slots:
                if name.endswith("rotary_emb.inv_freq") or (facts.has_tied_head and name == "lm_head.weight"):
                    continue
                raise CheckpointError(f"checkpoint: tensor {name} is unknown to the {facts.family} decoder, expected only its own weights.")
            slot = slots[name]
            if slot.shape != tensor.shape:
                raise CheckpointError(f"checkpoint: tensor {name} is {tuple(tensor.shape)}, expected {tuple(slot.shape)} from config.json.")
            slot.copy_(tensor)
            missing.discard(name)
    if missing:
        raise CheckpointError(f"checkpoint: {len(missing)} tensors are missing, the first is {min(missing)}.")
    return model.eval()
