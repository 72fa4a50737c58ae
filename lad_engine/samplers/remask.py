"""After a prediction: which tokens stay on the canvas until the next step, each row by its own rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..config import SamplingParams
from .commit import cluster_cover, lowest, retain, split_by_eos
from .purposes import RENOISE, RETAIN, TRANSFER


@dataclass(frozen=True)
class StepNumbers:
    """One step's row of every plan in the batch: `[B]` int64 except grows (bool) and probability (float64); see schedules.masking."""

    visible: Tensor
    grows: Tensor
    probability: Tensor
    count: Tensor
    keep: Tensor
    clusters: Tensor
    cluster_size: Tensor
    transfer: Tensor
    block_start: Tensor
    block_end: Tensor


@dataclass(frozen=True)
class RowRules:
    """Which rule each row of a batch follows.

    used: names present, the only part baked into a captured step. The tensors are `[B]` bool, noise_clip fp32:
    redraws (random or weighted draw of an exact count), is_weighted, is_clusters, is_bernoulli, is_lowest (confidence),
    retains, locks, transfers; is_permanent, splits (eos_split), by_confidence (selection), delays_eos (eos_treatment).
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


def row_rules(params: Sequence[SamplingParams], device: torch.device | str) -> RowRules:
    """Sort a batch's requests by rule."""
    names = [_rule_name(one) for one in params]

    def where(*wanted: str) -> Tensor:
        return torch.tensor([name in wanted for name in names], device=device)

    def flags(values: list[bool]) -> Tensor:
        return torch.tensor(values, device=device)

    return RowRules(
        used=frozenset(names) | ({"split"} if any(one.eos_split for one in params) else frozenset()),
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
        noise_clip=torch.tensor([one.noise_clip for one in params], dtype=torch.float32, device=device),
    )


def remask(
    rules: RowRules,
    now: StepNumbers,
    predicted: Tensor,
    confidence: Tensor,
    is_eos: Tensor,
    is_open: Tensor,
    was_shown: Tensor,
    retained: Tensor,
    mask_id: int,
    seeds: Tensor,
    step: Tensor,
    ops: Any,
) -> tuple[Tensor, Tensor]:
    """Put noise back into a predicted answer; rows that transfer, or never re-noise, come back unchanged.

    Args:
        predicted: `[B, R]` int64. confidence: `[B, R]` fp32. is_eos: `[B, R]` bool, of predicted. is_open: `[B, R]` bool, on the canvas.
        was_shown: `[B, R]` bool, positions that permanent_unmask protects. retained: `[B, R]` bool. seeds: `[B]`. step: `[]` int64.
    Returns:
        (tokens `[B, R]`, retained `[B, R]`).
    """
    eligible = is_open & ~(was_shown & rules.is_permanent[:, None])
    columns = torch.arange(predicted.shape[1], device=predicted.device)
    tokens = predicted
    masked = torch.zeros_like(is_open)
    if rules.used & {"random", "weighted"}:
        weight = torch.where(rules.is_weighted[:, None], torch.maximum(1 - confidence, rules.noise_clip[:, None]), 1.0)
        for pool, count in _pools(rules, now.count, eligible & rules.redraws[:, None], is_eos):
            tokens = ops.renoise(tokens, pool, weight, count, seeds, step, mask_id)
    if "confidence" in rules.used:
        score = _score(rules, confidence, is_eos)
        for pool, count in _pools(rules, now.count, eligible & rules.is_lowest[:, None], is_eos):
            masked = masked | lowest(score, pool, count)
    if rules.used & {"clusters", "bernoulli"}:
        uniforms = ops.uniform(seeds, columns, step, RENOISE)
        covered = cluster_cover(uniforms, now.visible, now.clusters, now.cluster_size)
        drawn = (uniforms.double() < now.probability[:, None]) | (is_eos & rules.delays_eos[:, None])
        masked = masked | (eligible & ((covered & rules.is_clusters[:, None]) | (drawn & rules.is_bernoulli[:, None])))
    if "retain" in rules.used:
        drawn = ops.uniform(seeds, columns, step, RETAIN)
        score = _score(rules, torch.where(rules.by_confidence[:, None], confidence, drawn), is_eos)
        grown = retain(score, is_open, retained, now.keep, is_eos, rules.splits)
        retained = torch.where(rules.retains[:, None], grown, retained)
        masked = masked | (eligible & ~retained & rules.retains[:, None])
    return torch.where(masked, mask_id, tokens), retained


def transferred(
    rules: RowRules, now: StepNumbers, confidence: Tensor, is_eos: Tensor, is_masked: Tensor, seeds: Tensor, step: Tensor, ops: Any
) -> Tensor:
    """Return `[B, R]` bool: the masked positions of the current block that commit at this step (LLaDA's budget), none elsewhere."""
    columns = torch.arange(confidence.shape[1], device=confidence.device)
    score = confidence
    if "transfer" in rules.used:
        score = torch.where(rules.by_confidence[:, None], confidence, ops.uniform(seeds, columns, step, TRANSFER))
    in_block = (columns >= now.block_start[:, None]) & (columns < now.block_end[:, None])
    return lowest(-_score(rules, score, is_eos), is_masked & in_block & rules.transfers[:, None], now.transfer)


def _rule_name(params: SamplingParams) -> str:
    return "retain" if params.retention != "none" else params.remasking


def _score(rules: RowRules, score: Tensor, is_eos: Tensor) -> Tensor:
    # Every real score is at least 0, so a delayed EOS comes behind all other tokens.
    return torch.where(rules.delays_eos[:, None] & is_eos, -1.0, score)


def _pools(rules: RowRules, count: Tensor, pool: Tensor, is_eos: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return (pool, count) pairs: one, or text and EOS apart where some row splits its budget."""
    if "split" not in rules.used:
        return [(pool, count)]
    apart = is_eos & rules.splits[:, None]
    text, eos = split_by_eos(count, pool, is_eos)
    return [(pool & ~apart, torch.where(rules.splits, text, count)), (pool & apart, eos)]
