"""L2D's decoding loop as its public code runs it, transcribed from a description, in plain PyTorch over a checkpoint's tensors.

What costs it time is kept: the flow vocabulary is projected anew at every evaluation (a `[V, D] x [D, Z]` product), so are the time
embedding and every layer's modulation head, and the evaluation at t = 0, where the flow path adds nothing, is made in full. What would
only slow it is not: keys and values are cached in place, attention is PyTorch's fused one, and nothing is computed twice otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import linear, normalize, scaled_dot_product_attention, silu

from lad_engine.contracts import ModelFacts
from lad_engine.model.latent_facts import LatentFacts
from lad_engine.model.rope import rope_tables


class ReferenceLoop:
    """Decodes one sequence with the midpoint rule; `tensors` are a checkpoint's own, by name."""

    def __init__(self, facts: ModelFacts, tensors: Mapping[str, Tensor], capacity: int) -> None:
        self.facts, self.latent, self.tensors = facts, LatentFacts.of(facts), tensors
        cos, sin = rope_tables(facts)
        like = tensors["model.embed_tokens.weight"]
        self.cos, self.sin = (torch.cat((table, table), -1).to(like.device) for table in (cos, sin))
        shape = (facts.layers, 1, facts.kv_heads, capacity, facts.head_width)
        self.keys, self.values, self.length = like.new_zeros(shape), like.new_zeros(shape), 0
        self.evaluations = 0

    def read(self, ids: Sequence[int]) -> Tensor:
        """Run tokens through the main path; returns `[D]`, the last one's row before the final norm."""
        get, facts, start = self.tensors, self.facts, self.length
        x = get["model.embed_tokens.weight"][torch.tensor(ids, device=self.cos.device)][None]
        end = start + len(ids)
        for layer in range(facts.layers):
            prefix = f"model.layers.{layer}"
            u = self._norm(x) * get[f"{prefix}.input_layernorm.weight"]
            q, k, v = (self._base(u, f"{prefix}.self_attn.{name}_proj") for name in "qkv")
            q, k, v = (part.view(1, len(ids), -1, facts.head_width).transpose(1, 2) for part in (q, k, v))
            q, k = self._turn(q, start), self._turn(k, start)
            self.keys[layer, :, :, start:end], self.values[layer, :, :, start:end] = k, v
            x = x + self._base(self._attend(q, layer, end, is_causal=len(ids) > 1), f"{prefix}.self_attn.o_proj")
            u = self._norm(x) * get[f"{prefix}.post_attention_layernorm.weight"]
            z = silu(self._base(u, f"{prefix}.mlp.gate_proj")) * self._base(u, f"{prefix}.mlp.up_proj")
            x = x + self._base(z, f"{prefix}.mlp.down_proj")
        self.length = end
        return x[0, -1]

    def evaluate(self, hidden: Tensor, x: Tensor, t: float, label: int | None = None) -> Tensor:
        """Return logits `[V]` of the latent state `x` `[Z]` at time t, beside the main path's row `hidden` `[D]`."""
        get, facts, latent = self.tensors, self.facts, self.latent
        self.evaluations += 1
        at, zero = self._embedded(t, label), self._embedded(0.0, label)
        scale = ((1 - t) ** 2 * latent.sigma**2 + t**2) ** -0.5
        scaled = (x.to(hidden.dtype).float() * scale).to(hidden.dtype)
        flow = self._two(scaled, "model.flow_to_lm_encoder.embedder.layers_module")[None, None]
        for layer in range(facts.layers):
            prefix = f"model.layers.{layer}"
            weight1, shift1, gate1, weight2, shift2, gate2 = self._two(at, f"{prefix}.modulation_head.mlp").chunk(6)
            u = self._norm(flow) * (get[f"{prefix}.input_layernorm.weight"] + weight1) + shift1
            q = self._turn(self._adapted(u, prefix, "self_attn", "q").view(1, 1, -1, facts.head_width).transpose(1, 2), self.length - 1)
            flow = flow + gate1 * self._adapted(self._attend(q, layer, self.length, is_causal=False), prefix, "self_attn", "o")
            u = self._norm(flow) * (get[f"{prefix}.post_attention_layernorm.weight"] + weight2) + shift2
            z = silu(self._adapted(u, prefix, "mlp", "gate")) * self._adapted(u, prefix, "mlp", "up")
            flow = flow + gate2 * self._adapted(z, prefix, "mlp", "down")
        merge = self._two(at, "model.modulation_head.mlp") - self._two(zero, "model.modulation_head.mlp")
        out = self._norm(hidden + merge * flow[0, 0]) * get["model.norm.weight"]
        return linear(out, get.get("lm_head.weight", get["model.embed_tokens.weight"])).float()

    def velocity(self, hidden: Tensor, x: Tensor, t: float) -> Tensor:
        """Return (x1_hat - x) / (1 - t), x1_hat the flow vector of the most probable token; the whole flow vocabulary is projected."""
        name, get = "model.flow_token_embedder.embedder.layers_module.0", self.tensors
        table = normalize(linear(get["model.embed_tokens.weight"], get[f"{name}.weight"], get[f"{name}.bias"]), dim=-1)
        token = self.evaluate(hidden, x, t).argmax()
        return (table[token].double() * math.sqrt(self.latent.flow_width) - x) / (1 - t)

    def token(self, hidden: Tensor, noise: Tensor, endpoints: int = 8) -> tuple[Tensor, Tensor]:
        """Integrate from `noise` `[Z]` (already of scale sigma) by the midpoint rule; returns (logits of the token, final state)."""
        x, grid = noise.double(), torch.linspace(0, 1, endpoints, dtype=torch.float64).tolist()
        for start, stop in pairwise(grid):
            dt = stop - start
            half = x + dt / 2 * self.velocity(hidden, x, start)
            x = x + dt * self.velocity(hidden, half, start + dt / 2)
        return self.evaluate(hidden, x, 1.0), x

    def _embedded(self, t: float, label: int | None) -> Tensor:
        half = self.latent.flow_width // 2
        angles = t * torch.exp(-math.log(10000.0) * torch.arange(half, device=self.cos.device) / half)
        features = torch.cat((angles.cos(), angles.sin())).to(self.keys.dtype)
        out = self._two(features, "model.timestep_embedder.mlp")
        return out if label is None else out + self.tensors["model.data_label_embedder.weight"][label]

    def _two(self, x: Tensor, name: str) -> Tensor:
        get = self.tensors
        return linear(silu(linear(x, get[f"{name}.0.weight"], get[f"{name}.0.bias"])), get[f"{name}.2.weight"], get[f"{name}.2.bias"])

    def _base(self, x: Tensor, name: str) -> Tensor:
        return linear(x, self.tensors[f"{name}.weight"], self.tensors.get(f"{name}.bias"))

    def _adapted(self, x: Tensor, prefix: str, room: str, name: str) -> Tensor:
        pair = f"{prefix}.{room}.flow_{name}_proj"
        low = x @ self.tensors[f"{pair}.A"] @ self.tensors[f"{pair}.B"]
        return self._base(x, f"{prefix}.{room}.{name}_proj") + low * (self.latent.alpha / self.latent.rank)

    def _norm(self, x: Tensor) -> Tensor:
        return (x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + self.facts.norm_eps)).to(x.dtype)

    def _turn(self, x: Tensor, start: int) -> Tensor:
        rows = slice(start, start + x.shape[2])
        first, second = x.chunk(2, -1)
        return (x * self.cos[rows] + torch.cat((-second, first), -1) * self.sin[rows]).to(x.dtype)

    def _attend(self, q: Tensor, layer: int, end: int, is_causal: bool) -> Tensor:
        keys, values = self.keys[layer, :, :, :end], self.values[layer, :, :, :end]
        out = scaled_dot_product_attention(q, keys, values, is_causal=is_causal, enable_gqa=True)
        return out.transpose(1, 2).flatten(2)
