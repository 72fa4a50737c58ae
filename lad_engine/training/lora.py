"""The trainable part: low-rank pairs laid beside the frozen base, and optionally its norms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import TrainingError


@dataclass
class Trainable:
    """What is optimised: pairs (A `[R, in]`, B `[out, R]`) fp32 by module path, norm weights by module path, and the common scale."""

    pairs: dict[str, tuple[nn.Parameter, nn.Parameter]]
    norms: dict[str, nn.Parameter]
    scale: float

    def named(self) -> dict[str, nn.Parameter]:
        """Return every parameter by a stable name."""
        out: dict[str, nn.Parameter] = {}
        for path, (a, b) in self.pairs.items():
            out[f"{path}.lora_A"], out[f"{path}.lora_B"] = a, b
        return {**out, **{f"{path}.weight": norm for path, norm in self.norms.items()}}

    def head_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that act after the last layer (they are reached through the head's logits only)."""
        return [*self.pairs.get("lm_head", ()), *([self.norms["model.norm"]] if "model.norm" in self.norms else [])]

    def load(self, tensors: Mapping[str, Tensor], where: str) -> None:
        """Copy stored values in.

        Raises:
            TrainingError: names or shapes differ.
        """
        named = self.named()
        different = set(named) ^ set(tensors) | {name for name in set(named) & set(tensors) if named[name].shape != tensors[name].shape}
        if different:
            raise TrainingError(f"{where}: {min(different)} does not fit this run. Use the rank, targets and norms it was written with.")
        with torch.no_grad():
            for name, parameter in named.items():
                parameter.copy_(tensors[name])

    def start_from(self, weights: Mapping[str, Any], norms: Mapping[str, Tensor], where: str) -> None:
        """Take the values of an existing adapter: pairs with `.a`, `.b`, `.scale` by module path; norms may be absent.

        Raises:
            TrainingError: the adapter has other modules, ranks or scales than this run.
        """
        tensors = {f"{path}.weight": norms.get(path, norm).to(norm.device) for path, norm in self.norms.items()}
        for path, pair in weights.items():
            if not math.isclose(pair.scale, self.scale, rel_tol=1e-6):
                raise TrainingError(f"init_adapter: scale of {where} is {pair.scale:g}, expected {self.scale:g}. Set its rank and alpha.")
            tensors[f"{path}.lora_A"], tensors[f"{path}.lora_B"] = pair.a, pair.b
        self.load(tensors, f"init_adapter {where}")


def attach_trainable(
    transformer: Any, targets: Sequence[str], rank: int, alpha: float, *, uses_rslora: bool, dropout: float, train_norms: bool, seed: int
) -> Trainable:
    """Freeze the base and lay a new pair beside every target; A is uniform in +-1/sqrt(in), B zero, so that nothing changes yet.

    scale = alpha / R, or alpha / sqrt(R) with rank-stabilised LoRA. Targets are last names ("q_proj") or whole module paths.
    Raises:
        TrainingError: a target names no linear layer, or the norms are to be trained in a rounded dtype.
    """
    names = transformer.linear_names()
    for target in targets:
        if not any(_matches(name, target) for name in names):
            known = sorted({name.rpartition(".")[2] for name in names})
            raise TrainingError(f"config: target {target} names no linear layer of this base, expected some of {', '.join(known)}.")
    for parameter in transformer.parameters():
        parameter.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    scale = alpha / math.sqrt(rank) if uses_rslora else alpha / rank
    pairs: dict[str, tuple[nn.Parameter, nn.Parameter]] = {}
    for name in names:
        if any(_matches(name, target) for target in targets):
            projection, start, stop = transformer.projection(name)
            width = projection.weight.shape[1]
            a = (torch.rand(rank, width, generator=generator) * 2 - 1) / math.sqrt(width)
            device = projection.weight.device
            pair = nn.Parameter(a.to(device)), nn.Parameter(torch.zeros(stop - start, rank, device=device))
            projection.attach(*pair, scale, start, stop, dropout)
            pairs[name] = pair
    return Trainable(pairs, _open_norms(transformer) if train_norms else {}, scale)


def _open_norms(transformer: Any) -> dict[str, nn.Parameter]:
    layers = transformer.facts.layers
    paths = [f"model.layers.{i}.{part}" for i in range(layers) for part in ("input_layernorm", "post_attention_layernorm")]
    norms = {path: transformer.norm(path) for path in [*paths, "model.norm"]}
    if next(iter(norms.values())).dtype != torch.float32:
        raise TrainingError("config: train_norms is on with a 16-bit base, whose rounding would swallow the updates. Use dtype float32.")
    for norm in norms.values():
        norm.requires_grad_(True)
    return norms


def _matches(name: str, target: str) -> bool:
    return name == target or name.rpartition(".")[2] == target
