"""An adapter in memory: low-rank pairs by module path, replaced norms, and the facts that came with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from ..contracts import AdapterFacts
from ..errors import AdapterError


@dataclass(frozen=True)
class LowRank:
    """One module's update: W' = W + scale * (b @ a), with a `[R, in]` and b `[out, R]`, both fp32."""

    a: Tensor
    b: Tensor
    scale: float

    @property
    def rank(self) -> int:
        return int(self.a.shape[0])

    @property
    def in_width(self) -> int:
        return int(self.a.shape[1])

    @property
    def out_width(self) -> int:
        return int(self.b.shape[0])

    def delta(self) -> Tensor:
        """The dense update `[out, in]` in fp32."""
        return (self.b.float() @ self.a.float()).mul_(self.scale)


@dataclass(frozen=True)
class Adapter:
    """What was read: low-rank pairs by HF module path ("model.layers.3.self_attn.q_proj"), new norm weights by norm module path.

    expects: says whether a module of the base should be adapted, where the adapter's own config says so (PEFT), else None.
    base_copies: weights of the base that were stored along, by tensor name; they are only compared, never used.
    """

    facts: AdapterFacts
    weights: Mapping[str, LowRank]
    norms: Mapping[str, Tensor] = field(default_factory=dict)
    path: Path | None = None
    expects: Callable[[str], bool] | None = None
    base_copies: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def parameters(self) -> int:
        """Number of values in all low-rank pairs and norms."""
        pairs = sum(w.a.numel() + w.b.numel() for w in self.weights.values())
        return pairs + sum(n.numel() for n in self.norms.values())

    def with_facts(self, **changes: object) -> Adapter:
        """Return a copy whose facts carry `changes`."""
        return replace(self, facts=replace(self.facts, **changes))


def pair_up(where: str, halves: Mapping[str, Mapping[str, Tensor]], scale_of: Callable[[str, int], float]) -> dict[str, LowRank]:
    """Join {"module": {"A": tensor, "B": tensor}} into pairs with `scale_of(module, rank)`.

    Raises:
        AdapterError: nothing to pair, a half is missing, or a shape, dtype or value cannot be a low-rank update.
    """
    if not halves:
        raise AdapterError(
            f"{where}: the file holds no lora_A/lora_B tensors, expected at least one pair. Check that this is a LoRA adapter."
        )
    pairs = {}
    for module, sides in sorted(halves.items(), key=_module_order):
        a, b = _checked(where, module, sides)
        pairs[module] = LowRank(a, b, float(scale_of(module, a.shape[0])))
    return pairs


def _checked(where: str, module: str, sides: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    for side in ("A", "B"):
        if side not in sides:
            raise AdapterError(
                f"{where}: {module} has no lora_{side} tensor, expected a pair of lora_A and lora_B. The file is incomplete."
            )
        if sides[side].ndim != 2 or not sides[side].is_floating_point() or 0 in sides[side].shape:
            got = f"{str(sides[side].dtype).removeprefix('torch.')} {tuple(sides[side].shape)}"
            raise AdapterError(f"{where}: {module} lora_{side} is {got}, expected a two-dimensional floating point tensor.")
    a, b = sides["A"], sides["B"]
    if a.shape[0] != b.shape[1]:
        raise AdapterError(f"{where}: {module} has lora_A of rank {a.shape[0]} and lora_B of rank {b.shape[1]}, expected the same rank.")
    return a.to(torch.float32).contiguous(), b.to(torch.float32).contiguous()


def _module_order(item: tuple[str, object]) -> tuple:
    # numbers compare as numbers, so layer 2 comes before layer 10
    return tuple((1, int(part), "") if part.isdigit() else (0, 0, part) for part in item[0].split("."))
