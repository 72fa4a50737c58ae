"""The model as the autoregressive baseline sees it: a prompt read at once, then one token per sequence and step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..contracts import TokenChoice, TokenRule
from .kv_cache import KVCache
from .projection import Projection
from .transformer import DecoderLayer, Transformer

# The few-row op takes no more (a test compares it with the op's own limit); larger batches go through the ordinary ops.
FEW_ROWS = 8


class CausalModel:
    """A transformer read from left to right with a cache (implements `denoisers.autoregressive.CausalDecodable`).

    batch_invariant True computes every sequence by itself, so that its numbers do not depend on its batch-mates.
    """

    def __init__(self, transformer: Transformer, batch_invariant: bool = True) -> None:
        self.transformer, self.batch_invariant = transformer, batch_invariant

    def open_cache(self, batch: int, capacity: int) -> KVCache:
        """Return an empty cache in the model's dtype, on its device."""
        embed = self.transformer.embed
        return KVCache(self.transformer.facts, batch, capacity, embed.dtype, embed.device)

    def prefill(self, ids: Tensor, lengths: tuple[int, ...], cache: KVCache) -> Tensor:
        """Read prompts `[B, T]`, left-aligned, into an empty cache; returns `[B, D]`, the row of each prompt's last token."""
        if self.batch_invariant:
            pieces = [(b, b + 1, length) for b, length in enumerate(lengths)]
        else:
            pieces = [(0, len(lengths), max(lengths))]
        rows = []
        for start, stop, longest in pieces:
            hidden = self.transformer(ids[start:stop, :longest], cache=cache.view(start, stop))
            last = torch.tensor(lengths[start:stop], device=ids.device) - 1
            rows.append(hidden[torch.arange(stop - start, device=ids.device), last])
        cache.positions.copy_(torch.tensor(lengths))
        return torch.cat(rows)

    def decode(
        self, tokens: Tensor, cache: KVCache, lengths: tuple[int, ...] | None = None, unread: tuple[bool, ...] | None = None
    ) -> Tensor:
        """Read one token `[B]` per sequence at the cache's positions, which stay as they are; returns `[B, D]`.

        lengths: tokens cached of each sequence, host integers that bound what attention looks at; None (a captured step) looks at the
            whole capacity and lets the device positions mask it.
        unread: sequences whose rows nobody looks at, zeros where they are left out.
        """
        B = len(tokens)
        if not self.batch_invariant:
            return self._forward(tokens, cache if lengths is None else cache.view(0, B, max(lengths) + 1))
        rows = self.transformer.embed.new_zeros(B, self.transformer.facts.width)
        for b in range(B):
            if unread is None or not unread[b]:
                capacity = None if lengths is None else lengths[b] + 1
                rows[b] = self._forward(tokens[b : b + 1], cache.view(b, b + 1, capacity))[0]
        return rows

    def choose(self, rows: Tensor, rule: TokenRule, uniforms: Tensor) -> TokenChoice:
        """Choose the next token of each sequence from `rows` `[B, D]`, one uniform `[B]` each; token and confidence are `[B]`."""
        head, ops = self.transformer.head, self.transformer.ops
        parts = rows.split(1) if self.batch_invariant else (rows,)
        logits = torch.cat([self._linear(head.projection, part, None, head.norm)[0] for part in parts]).float()
        token, confidence = ops.choose_token(
            logits,
            uniforms,
            rule.temperature,
            rule.top_k,
            rule.top_p,
            rule.drop_crossing,
            rule.full_confidence,
            rule.bias_ids,
            rule.bias_values,
            max_top_k=rule.max_top_k,
            samples_all=rule.samples_all,
        )
        return TokenChoice(token, confidence)

    def _forward(self, tokens: Tensor, cache: KVCache) -> Tensor:
        x, residual = torch.nn.functional.embedding(tokens, self.transformer.embed), None
        for layer in self.transformer.layers:
            x, residual = self._layer(layer, x, residual, cache)
        return x + residual

    def _layer(self, layer: DecoderLayer, x: Tensor, residual: Tensor | None, cache: KVCache) -> tuple[Tensor, Tensor]:
        facts, ops = self.transformer.facts, self.transformer.ops
        B, heads = len(x), facts.query_heads + 2 * facts.kv_heads
        qkv, h = self._linear(layer.qkv, x, residual, layer.input_norm)
        mixed = ops.decode_attention(
            qkv.view(B, heads, facts.head_width),
            cache.keys[layer.index],
            cache.values[layer.index],
            cache.positions,
            self.transformer.cos,
            self.transformer.sin,
        )
        x, _ = self._linear(layer.output, mixed.flatten(1))
        y, h = self._linear(layer.gate_up, x, h, layer.post_norm, is_gated=True)
        return self._linear(layer.down, y)[0], h

    def _linear(
        self, projection: Projection, x: Tensor, residual: Tensor | None = None, norm: Tensor | None = None, is_gated: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Norm, linear layer and gate in one op for few rows and plain weights, in ordinary ops else; see `few_row_linear`."""
        ops, eps = self.transformer.ops, self.transformer.facts.norm_eps
        if len(x) <= FEW_ROWS and _is_plain(projection, x):
            return ops.few_row_linear(x, projection.weight, projection.bias, residual, norm, eps, is_gated)
        n, h = (x, x) if norm is None else ops.add_rmsnorm(x, residual, norm, eps)
        y: Any = projection(n, ops.lora_linear)
        return ops.swiglu(y) if is_gated else y, h


def _is_plain(projection: Projection, x: Tensor) -> bool:
    """Whether the weight alone is the layer: no low-rank path beside it, and not quantised."""
    return not projection.low_rank and projection.weight.dtype == x.dtype
