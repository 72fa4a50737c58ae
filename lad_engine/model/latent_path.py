"""L2D's flow path: a second way through the frozen layers that reads the main path's keys and values and is steered by time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize, silu

from ..contracts import ModelFacts
from .kv_cache import KVCache
from .latent_facts import LABELS, LatentFacts, latent_shapes
from .projection import Projection
from .transformer import DecoderLayer, Transformer

# The slowest of the time features, as in the reference (and in Vaswani et al. 2017).
LONGEST_PERIOD = 10000.0
# Rows of the flow table computed at a time: their fp32 embeddings take 64 MB at width 4096.
TABLE_CHUNK = 4096
# How the head of a layer lays its output out: six vectors.
MODULATIONS = 6


class Conditions(NamedTuple):
    """What times (and classes) make of the flow path, fp32.

    layers: `[N, L, 6, D]`: weight, shift and gate of attention, then of the MLP; the norms' own weights are in it. merge: `[N, D]`, w(t).
    """

    layers: Tensor
    merge: Tensor


class Pair(nn.Module):
    """A low-rank pair beside one layer of the base: a `[R, in]`, b `[out, R]`."""

    def __init__(self, out: int, inside: int, rank: int, dtype: torch.dtype, device: torch.device | str) -> None:
        super().__init__()
        self.a, self.b = _frozen((rank, inside), dtype, device), _frozen((out, rank), dtype, device)


class FlowLinear(nn.Module):
    """A linear layer of the flow path: rows of the base's weight with pairs beside them, or a weight of its own.

    names: the flow path's own names of the parts, in the order of their rows.
    """

    def __init__(
        self,
        base: Projection,
        rows: Iterable[str],
        names: tuple[str, ...],
        latent: LatentFacts,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        super().__init__()
        bounds = [base.rows[row] for row in rows]
        self.start, self.stop = bounds[0][0], bounds[-1][1]
        self.bounds = [(start - self.start, stop - self.start) for start, stop in bounds]
        self.names, self.scale = names, latent.alpha / latent.rank if latent.rank else 0.0
        # In a tuple, so that the base's weight is not a parameter of the flow path too.
        self._base = (base,)
        inside, out = base.weight.shape[1], self.stop - self.start
        self.weight = self.bias = None
        self.pairs = nn.ModuleList()
        if latent.has_full_weights:
            self.weight = _frozen((out, inside), dtype, device)
            self.bias = _frozen((out,), dtype, device) if base.bias is not None else None
        else:
            self.pairs.extend(Pair(stop - start, inside, latent.rank, dtype, device) for start, stop in self.bounds)

    def forward(self, x: Tensor, lora_linear: Callable[..., Tensor]) -> Tensor:
        """Map `[..., in]` to `[..., out]` with the given op."""
        if self.weight is not None:
            return lora_linear(x, self.weight, self.bias)
        (base,) = self._base
        bias = None if base.bias is None else base.bias[self.start : self.stop]
        paths = [(pair.a, pair.b, self.scale, *place) for pair, place in zip(self.pairs, self.bounds, strict=True)]
        return lora_linear(x, base.weight[self.start : self.stop], bias, paths)

    def slots(self) -> dict[str, Tensor]:
        """Return the storage of the parts by their names, in the checkpoint's layout."""
        out: dict[str, Tensor] = {}
        for index, (name, (start, stop)) in enumerate(zip(self.names, self.bounds, strict=True)):
            if self.weight is not None:
                out[f"{name}.weight"] = self.weight.data[start:stop]
                if self.bias is not None:
                    out[f"{name}.bias"] = self.bias.data[start:stop]
            else:
                out[f"{name}.A"], out[f"{name}.B"] = self.pairs[index].a.data.T, self.pairs[index].b.data.T
        return out


class TwoLinears(nn.Module):
    """linear, SiLU, linear; `forward` computes in the dtype of its weights."""

    def __init__(self, inside: int, hidden: int, out: int, dtype: torch.dtype, device: torch.device | str) -> None:
        super().__init__()
        self.first = nn.Linear(inside, hidden, dtype=dtype, device=device)
        self.second = nn.Linear(hidden, out, dtype=dtype, device=device)
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[..., in]` to `[..., out]`."""
        return self.second(silu(self.first(x.to(self.first.weight.dtype))))

    def slots(self, name: str) -> dict[str, Tensor]:
        """Return the storage by the checkpoint's names."""
        parts = ((0, self.first), (2, self.second))
        return {f"{name}.{index}.{kind}": getattr(part, kind).data for index, part in parts for kind in ("weight", "bias")}


class FlowLayer(nn.Module):
    """What the flow path adds to one layer of the base."""

    def __init__(self, base: DecoderLayer, latent: LatentFacts, dtype: torch.dtype, device: torch.device | str) -> None:
        super().__init__()
        Z, attention, mlp = latent.flow_width, f"{base.prefix}.self_attn", f"{base.prefix}.mlp"
        rest = (latent, dtype, device)
        self.prefix = base.prefix
        self.modulation = TwoLinears(Z, Z, MODULATIONS * base.facts.width, dtype, device)
        self.q = FlowLinear(base.qkv, (f"{attention}.q_proj",), (f"{attention}.flow_q_proj",), *rest)
        self.output = FlowLinear(base.output, (f"{attention}.o_proj",), (f"{attention}.flow_o_proj",), *rest)
        gates = tuple(f"{mlp}.{name}_proj" for name in ("gate", "up"))
        self.gate_up = FlowLinear(base.gate_up, gates, tuple(f"{mlp}.flow_{name}_proj" for name in ("gate", "up")), *rest)
        self.down = FlowLinear(base.down, (f"{mlp}.down_proj",), (f"{mlp}.flow_down_proj",), *rest)

    def linears(self) -> tuple[FlowLinear, ...]:
        return self.q, self.output, self.gate_up, self.down

    def slots(self) -> dict[str, Tensor]:
        """Return the storage by the checkpoint's names."""
        out = self.modulation.slots(f"{self.prefix}.modulation_head.mlp")
        for part in self.linears():
            out.update(part.slots())
        return out


class LatentPath(nn.Module):
    """The flow path of one base: flow vocabulary, encoder, time, modulation heads, and what it adds to each layer."""

    def __init__(self, base: Transformer, dtype: torch.dtype, device: torch.device | str) -> None:
        super().__init__()
        facts, latent = base.facts, LatentFacts.of(base.facts)
        Z, D = latent.flow_width, facts.width
        self.facts, self.latent = facts, latent
        self._base = (base,)
        self.embedder = nn.Linear(D, Z, dtype=dtype, device=device).requires_grad_(False)
        self.encoder = TwoLinears(Z, Z, D, dtype, device)
        self.time = TwoLinears(Z, Z, Z, dtype, device)
        self.merge = TwoLinears(Z, Z, D, dtype, device)
        self.labels = _frozen((latent.classes + 1, Z), dtype, device) if latent.classes else None
        self.layers = nn.ModuleList(FlowLayer(layer, latent, dtype, device) for layer in base.layers)

    @torch.no_grad()
    def table(self) -> Tensor:
        """Return the flow vocabulary `[V, Z]` fp32: v_y = sqrt(Z) (W e_y + b) / |W e_y + b|."""
        (base,) = self._base
        return torch.cat([self.vectors(rows) for rows in base.embed.split(TABLE_CHUNK)])

    def vectors(self, embeddings: Tensor) -> Tensor:
        """Map token embeddings `[..., D]` to flow vectors `[..., Z]` fp32 of norm sqrt(Z)."""
        weight, bias = self.embedder.weight.float(), self.embedder.bias.float()
        return normalize(linear(embeddings.float(), weight, bias), dim=-1) * math.sqrt(self.latent.flow_width)

    def encoded(self, x: Tensor, scale: Tensor | float) -> Tensor:
        """Map latent states `[..., Z]`, brought to unit variance by `scale`, to the width of the model."""
        return self.encoder(x * scale)

    def embedded(self, t: Tensor, classes: Tensor | None) -> Tensor:
        """Embed times `[N]` fp32 (and classes `[N]` int64 where there is a table) as `[N, Z]`."""
        half = self.latent.flow_width // 2
        slowing = torch.arange(half, dtype=torch.float32, device=t.device) * (-math.log(LONGEST_PERIOD) / half)
        angles = t.float()[:, None] * slowing.exp()
        out = self.time(torch.cat((angles.cos(), angles.sin()), dim=-1))
        return out if self.labels is None else out + self.labels[classes]

    def modulation(self, layer: int, at: Tensor, start: Tensor) -> Tensor:
        """Return `[N, 6, D]` fp32 of one layer for embedded times `[N, Z]`; `start` is t = 0 embedded with the same classes."""
        (base,), own = self._base, self.layers[layer]
        D = self.facts.width
        out = own.modulation(at).float()
        if self.latent.freezes_modulation:
            gates = torch.zeros(MODULATIONS, 1, device=at.device)
            gates[2] = gates[5] = 1.0
            out = (out - own.modulation(start).float()).view(-1, MODULATIONS, D) + gates
        out = out.view(-1, MODULATIONS, D)
        norms = torch.stack((base.layers[layer].input_norm, base.layers[layer].post_norm)).float()
        return torch.cat((out[:, :1] + norms[0], out[:, 1:3], out[:, 3:4] + norms[1], out[:, 4:]), dim=1)

    def merge_weight(self, t: Tensor, at: Tensor, start: Tensor) -> Tensor:
        """w(t) = g(t) - g(0) `[N, D]` fp32: exactly zero at t = 0, whatever the products round to."""
        change = self.merge(at).float() - self.merge(start).float()
        return torch.where((t == 0)[:, None], 0.0, change)

    def conditions(self, t: Tensor, classes: Tensor | None = None) -> Conditions:
        """Return everything the path needs to know about times `[N]` and classes `[N]`."""
        at, start = self.embedded(t, classes), self.embedded(torch.zeros_like(t), classes)
        layers = [self.modulation(index, at, start) for index in range(self.facts.layers)]
        return Conditions(torch.stack(layers, dim=1), self.merge_weight(t, at, start))

    def forward(self, x: Tensor, layers: Tensor, cache: KVCache, positions: Tensor) -> Tensor:
        """Run encoded flow tokens through all layers: each reads the cached keys up to its sequence's position.

        Args:
            x: `[B, W, D]`, W tokens of one sequence that do not see each other. layers: `[B W, L, 6, D]`, or one for all.
            cache: of the main path. positions: `[B]` int64, where the flow tokens stand; the key there is cached.
        Returns:
            `[B, W, D]`, the residual stream after the last layer.
        """
        (base,), facts = self._base, self.facts
        B, W, D = x.shape
        G, each, K = facts.kv_heads, facts.query_heads // facts.kv_heads, facts.head_width
        layers = layers.expand(B * W, -1, -1, -1)
        x, residual, gate = x.reshape(B * W, D), None, None
        for index, own in enumerate(self.layers):
            shape = layers[:, index]  # [B W, 6, D]
            y, h = base.ops.modulated_norm(x, residual, gate, shape[:, 0], shape[:, 1], facts.norm_eps)
            # The tokens of a sequence share its keys, so they stand side by side as further heads of each group.
            q = own.q(y, base.ops.lora_linear).view(B, W, G, each, K).transpose(1, 2).reshape(B, G * W * each, K)
            keys, values = cache.keys[index], cache.values[index]
            mixed = base.ops.decode_attention(q, keys, values, positions, base.cos, base.sin, True)
            mixed = mixed.view(B, G, W, each, K).transpose(1, 2).reshape(B * W, G * each * K)
            x = own.output(mixed, base.ops.lora_linear)
            y, residual = base.ops.modulated_norm(x, h, shape[:, 2], shape[:, 3], shape[:, 4], facts.norm_eps)
            x, gate = own.down(base.ops.swiglu(own.gate_up(y, base.ops.lora_linear)), base.ops.lora_linear), shape[:, 5]
        return (residual.float() + gate * x.float()).to(x.dtype).view(B, W, D)

    def parallel(self, x: Tensor, at: Tensor, start: Tensor, cache: KVCache) -> Tensor:
        """Run one flow token beside every position of `[B, T]` sequences at once, each with its own time (training).

        Args:
            x: `[B, T, D]` encoded flow tokens. at, start: `[B T, Z]` embedded times, see `modulation`. cache: T keys of the main path.
        Returns:
            `[B, T, D]`.
        """
        (base,), facts = self._base, self.facts
        (B, T, D), ops = x.shape, base.ops
        tables = base.cos[:T], base.sin[:T]
        # The path's own parameters may be fp32 beside a 16-bit base.
        x, residual, gate = x.reshape(B * T, D).to(base.embed.dtype), None, None
        for index, own in enumerate(self.layers):
            shape = self.modulation(index, at, start)
            y, h = ops.modulated_norm(x, residual, gate, shape[:, 0], shape[:, 1], facts.norm_eps)
            q = ops.rotary(own.q(y, ops.lora_linear).view(B, T, facts.query_heads, facts.head_width), *tables)
            mixed = ops.attention(q, cache.keys[index, :, :T], cache.values[index, :, :T], None, True)
            x = own.output(mixed.reshape(B * T, -1), ops.lora_linear)
            y, residual = ops.modulated_norm(x, h, shape[:, 2], shape[:, 3], shape[:, 4], facts.norm_eps)
            x, gate = own.down(ops.swiglu(own.gate_up(y, ops.lora_linear)), ops.lora_linear), shape[:, 5]
        return (residual.float() + gate * x.float()).to(x.dtype).view(B, T, D)

    def slots(self) -> dict[str, Tensor]:
        """Return the storage of every tensor by the checkpoint's names, in its layout."""
        first = "model.flow_token_embedder.embedder.layers_module.0"
        out = {f"{first}.weight": self.embedder.weight.data, f"{first}.bias": self.embedder.bias.data}
        out.update(self.encoder.slots("model.flow_to_lm_encoder.embedder.layers_module"))
        out.update(self.time.slots("model.timestep_embedder.mlp"))
        out.update(self.merge.slots("model.modulation_head.mlp"))
        if self.labels is not None:
            out[LABELS] = self.labels.data
        for layer in self.layers:
            out.update(layer.slots())
        assert {name: tuple(slot.shape) for name, slot in out.items()} == latent_shapes(self.facts), "flow path: names or shapes differ"
        return out


class LatentTransformer(Transformer):
    """A base and its flow path in one checkpoint."""

    def __init__(self, facts: ModelFacts, ops: Any, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> None:
        super().__init__(facts, ops, dtype, device)
        self.flow = LatentPath(self, dtype, device)

    def slots(self) -> dict[str, Tensor]:
        """Return the storage of every checkpoint tensor, the flow path's included."""
        return {**super().slots(), **self.flow.slots()}


def _frozen(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, dtype=dtype, device=device), requires_grad=False)
