"""Which tokens stay on the canvas after a prediction: each request's rule, as tables the op `update` reads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import SamplingParams


@dataclass(frozen=True)
class RowRules:
    """Which rule each row of a batch follows.

    used: names present, the only part baked into a captured step. The tensors are `[B]` bool, the last four fp32:
    redraws (random or weighted draw of an exact count), is_weighted, is_clusters, is_bernoulli, is_lowest (confidence),
    retains, locks, transfers; is_permanent, splits (eos_split), by_confidence (selection), delays_eos (eos_treatment); threshold is
    infinite where there is none.
    """

    used: frozenset[str]
    redraws: Tensor
    is_weighted: Tensor
    is_clusters: Tensor
    is_bernoulli: Tensor
    is_lowest: Tensor
    retains: Tensor
    locks: Tensor
    transfers: Tensor
    is_permanent: Tensor
    splits: Tensor
    by_confidence: Tensor
    delays_eos: Tensor
    noise_clip: Tensor
    threshold: Tensor
    frequency_penalty: Tensor
    presence_penalty: Tensor


def row_rules(params: Sequence[SamplingParams], device: torch.device | str) -> RowRules:
    """Sort a batch's requests by rule."""
    names = [_rule_name(one) for one in params]
    shared = {"split": any(one.eos_split for one in params), "threshold": any(one.threshold is not None for one in params)}

    def where(*wanted: str) -> Tensor:
        return torch.tensor([name in wanted for name in names], device=device)

    def flags(values: list[bool]) -> Tensor:
        return torch.tensor(values, device=device)

    def numbers(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device)

    return RowRules(
        used=frozenset(names) | {name for name, is_used in shared.items() if is_used},
        redraws=where("random", "weighted"),
        is_weighted=where("weighted"),
        is_clusters=where("clusters"),
        is_bernoulli=where("bernoulli"),
        is_lowest=where("confidence"),
        retains=where("retain"),
        locks=flags([one.retention == "locked" for one in params]),
        transfers=where("transfer"),
        is_permanent=flags([one.permanent_unmask for one in params]),
        splits=flags([one.eos_split for one in params]),
        by_confidence=flags([one.selection == "confidence" for one in params]),
        delays_eos=flags([one.eos_treatment == "low_confidence" for one in params]),
        noise_clip=numbers([one.noise_clip for one in params]),
        threshold=numbers([math.inf if one.threshold is None else one.threshold for one in params]),
        frequency_penalty=numbers([one.frequency_penalty for one in params]),
        presence_penalty=numbers([one.presence_penalty for one in params]),
    )


def _rule_name(params: SamplingParams) -> str:
    return "retain" if params.retention != "none" else params.remasking
