"""The GPT-2 decoder over a whole canvas (Radford et al. 2019): learned positions, LayerNorm, GELU, biases everywhere, a tied head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, gelu, layer_norm
from torch.utils.checkpoint import checkpoint as recompute

from ..contracts import ModelFacts
from ..errors import AdapterError, CheckpointError
from .adapter_rows import AdapterRows
from .head import Head
from .projection import Projection
from .transformer import fill_from, masked_attention


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(var + eps) * weight + bias over the last axis, statistics in fp32."""

    def __init__(self, width: int, eps: float, dtype: torch.dtype, device: torch.device | str) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(width, dtype=dtype, device=device), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(width, dtype=dtype, device=device), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `[..., D]`."""
        return layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class Gpt2Head(Head):
    """The head of `Head` behind a LayerNorm; its projection is the embedding where tied."""

    def __init__(
        self, facts: ModelFacts, ops: Any, tied_weight: nn.Parameter | None, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        super().__init__(facts, ops, tied_weight, dtype, device)
        self.norm_bias = nn.Parameter(torch.empty(facts.width, dtype=dtype, device=device), requires_grad=False)

    def normed(self, rows: Tensor) -> Tensor:
        """Apply the final norm to `[..., D]`."""
        return layer_norm(rows, self.norm.shape, self.norm, self.norm_bias, self.facts.norm_eps)


class Gpt2Layer(nn.Module):
    """x + attention(ln_1(x)), then x + mlp(ln_2(x))."""

    def __init__(self, facts: ModelFacts, index: int, dtype: torch.dtype, device: torch.device | str) -> None:
        super().__init__()
        D, F, prefix = facts.width, facts.mlp_width, f"transformer.h.{index}"
        self.facts, self.prefix = facts, prefix
        self.input_norm = LayerNorm(D, facts.norm_eps, dtype, device)
        self.qkv = Projection(D, {f"{prefix}.attn.c_attn": 3 * D}, True, dtype, device)
        self.output = Projection(D, {f"{prefix}.attn.c_proj": D}, True, dtype, device)
        self.post_norm = LayerNorm(D, facts.norm_eps, dtype, device)
        self.up = Projection(D, {f"{prefix}.mlp.c_fc": F}, True, dtype, device)
        self.down = Projection(F, {f"{prefix}.mlp.c_proj": D}, True, dtype, device)

    def forward(self, x: Tensor, lengths: Tensor | None, mask: Tensor | None, ops: Any) -> Tensor:
        """Return the layer's output `[B, T, D]`; `mask` as in `Gpt2Transformer.forward`."""
        B, T, D = x.shape
        H, K = self.facts.query_heads, self.facts.head_width
        q, k, v = self.qkv(self.input_norm(x), ops.lora_linear).view(B, T, 3, H, K).unbind(2)
        if mask is None:
            mixed = ops.attention(q, k, v, lengths)
        else:
            mixed = masked_attention(q, k, v, mask)
        x = x + self.output(mixed.reshape(B, T, D), ops.lora_linear)
        z = gelu(self.up(self.post_norm(x), ops.lora_linear), approximate="tanh")
        return x + self.down(z, ops.lora_linear)


class Gpt2Transformer(nn.Module):
    """The same use as `Transformer`, bidirectional only: construct with `from_tensors`, address parameters by their GPT-2 names."""

    adapter_rows: AdapterRows | None = None

    def __init__(self, facts: ModelFacts, ops: Any, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.facts, self.ops = facts, ops
        self.embed = nn.Parameter(torch.empty(facts.vocab_size, facts.width, dtype=dtype, device=device), requires_grad=False)
        self.places = nn.Parameter(torch.empty(facts.max_positions, facts.width, dtype=dtype, device=device), requires_grad=False)
        self.layers = nn.ModuleList(Gpt2Layer(facts, index, dtype, device) for index in range(facts.layers))
        self.head = Gpt2Head(facts, ops, self.embed if facts.has_tied_head else None, dtype, device)

    @classmethod
    def from_tensors(
        cls, facts: ModelFacts, tensors: Any, ops: Any, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> Gpt2Transformer:
        """Fill a decoder from (name, tensor) pairs; see `Transformer.from_tensors`."""
        return fill_from(cls(facts, ops, dtype, device), tensors)

    def forward(
        self,
        ids: Tensor,
        lengths: Tensor | None = None,
        *,
        cache: Any = None,
        is_causal: bool = False,
        recomputes: bool = False,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Map ids `[B, T]` int64 to hidden states `[B, T, D]` before the final norm.

        lengths: `[B]` on the device where sequences end before T. mask: `[T, T]` bool, which key each query may see (training with an
        annealed mask; lengths are then not looked at). recomputes: keep only each layer's input for the backward pass.
        Raises:
            CheckpointError: the canvas is longer than the checkpoint's positions, or a causal pass is asked for.
        """
        T = ids.shape[1]
        if cache is not None or is_causal:
            raise CheckpointError("gpt2: autoregressive decoding is asked for, expected a Llama-family base. Decode by diffusion instead.")
        if T > self.facts.max_positions:
            raise CheckpointError(f"canvas: {T} positions, expected at most {self.facts.max_positions} (n_positions of the base).")
        x = embedding(ids, self.embed) + self.places[:T]
        for layer in self.layers:
            args = (x, lengths, mask, self.ops)
            x = recompute(layer, *args, use_reentrant=False) if recomputes else layer(*args)
        return x

    def slots(self) -> dict[str, Tensor]:
        """Return the storage of every checkpoint tensor by its Hugging Face name."""
        out: dict[str, Tensor] = {
            "transformer.wte.weight": self.embed.data,
            "transformer.wpe.weight": self.places.data,
            "transformer.ln_f.weight": self.head.norm.data,
            "transformer.ln_f.bias": self.head.norm_bias.data,
        }
        for projection in self.projections():
            for name, (start, stop) in projection.rows.items():
                if projection.weight is not self.embed:
                    out[f"{name}.weight"] = projection.weight.data[start:stop]
                    if projection.bias is not None:
                        out[f"{name}.bias"] = projection.bias.data[start:stop]
        for layer in self.layers:
            for name, norm in (("ln_1", layer.input_norm), ("ln_2", layer.post_norm)):
                out[f"{layer.prefix}.{name}.weight"], out[f"{layer.prefix}.{name}.bias"] = norm.weight.data, norm.bias.data
        return out

    def projection(self, path: str) -> tuple[Projection, int, int]:
        """Return the linear layer behind a module path such as "transformer.h.3.attn.c_attn" and its rows; see `Transformer.projection`."""
        for projection in self.projections():
            if path in projection.rows:
                if projection.weight is self.embed:
                    projection.weight = nn.Parameter(self.embed.detach().clone(), requires_grad=False)
                return projection, *projection.rows[path]
        raise AdapterError(
            f"adapter: module {path} is not a linear layer of this base, expected names such as {next(iter(self.layers[0].qkv.rows))}."
        )

    def norm(self, path: str) -> nn.Parameter:
        """Return the `[D]` weight of a norm such as "transformer.ln_f" or "transformer.h.3.ln_1"."""
        norms = {"transformer.ln_f": self.head.norm}
        for layer in self.layers:
            norms[f"{layer.prefix}.ln_1"], norms[f"{layer.prefix}.ln_2"] = layer.input_norm.weight, layer.post_norm.weight
        if path not in norms:
            raise AdapterError(f"adapter: module {path} is not a norm of this base, expected names such as transformer.h.0.ln_1.")
        return norms[path]

    def linear_names(self) -> list[str]:
        """Return the module paths of all linear layers, lm_head included."""
        return [name for projection in self.projections() for name in projection.rows]

    def projections(self) -> list[Projection]:
        """Return every linear layer, layer by layer, the head's last."""
        return [p for layer in self.layers for p in (layer.qkv, layer.output, layer.up, layer.down)] + [self.head.projection]


def expected_shapes(facts: ModelFacts) -> dict[str, tuple[int, ...]]:
    """Return every tensor a GPT-2 checkpoint of these facts holds, by Hugging Face name, linear weights as `[out, in]`."""
    D, F, V = facts.width, facts.mlp_width, facts.vocab_size
    shapes: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (V, D),
        "transformer.wpe.weight": (facts.max_positions, D),
        "transformer.ln_f.weight": (D,),
        "transformer.ln_f.bias": (D,),
    }
    if not facts.has_tied_head:
        shapes["lm_head.weight"] = (V, D)
    for layer in range(facts.layers):
        for name, out, into in (("attn.c_attn", 3 * D, D), ("attn.c_proj", D, D), ("mlp.c_fc", F, D), ("mlp.c_proj", D, F)):
            shapes[f"transformer.h.{layer}.{name}.weight"] = (out, into)
            shapes[f"transformer.h.{layer}.{name}.bias"] = (out,)
        for name in ("ln_1", "ln_2"):
            shapes[f"transformer.h.{layer}.{name}.weight"] = shapes[f"transformer.h.{layer}.{name}.bias"] = (D,)
    return shapes
