"""Masked diffusion: which hidden positions take the tokens that were just predicted, for rules that decide while they run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import PREDRAWN, SamplingParams

# What a position's score is; the last two come from the head beside the token (`contracts.TokenChoice.certainty`).
PROBABILITY, MARGIN, ENTROPY = 0, 1, 2
CERTAINTIES = {"topk_margin": MARGIN, "entropy": ENTROPY}
# Lowers an end token's score below every other's and keeps their order: scores are probabilities here.
EOS_PENALTY = 4.0


@dataclass(frozen=True)
class RevealRules:
    """Which rule each row of a batch follows.

    used: what some row needs, the only part baked into a captured step ("budget", "cutoff", "certainty", "noise", "draw", "eos").
    The tensors are `[B]`: is_predrawn, is_cutoff, by_draw, delays_eos bool; certainty int64 (PROBABILITY, MARGIN, ENTROPY);
    threshold fp32 (infinite where none), factor fp32 (-1 where none); least int64, revealed at every step at least;
    block_length int64; order_temperature fp32 (0 where there is no noise on the order).
    """

    used: frozenset[str]
    is_predrawn: Tensor
    is_cutoff: Tensor
    by_draw: Tensor
    delays_eos: Tensor
    certainty: Tensor
    threshold: Tensor
    factor: Tensor
    least: Tensor
    block_length: Tensor
    order_temperature: Tensor


def reveal_rules(params: Sequence[SamplingParams], device: torch.device | str) -> RevealRules:
    """Sort a batch's requests by rule."""

    def table(values: list, dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=device)

    budgeted = [one for one in params if one.reveal not in (*PREDRAWN, "confidence")]
    needs = {
        "budget": bool(budgeted),
        "cutoff": any(one.reveal == "confidence" for one in params),
        "certainty": any(one.reveal in CERTAINTIES for one in params),
        "noise": any(one.reveal_temperature > 0 for one in budgeted),
        "draw": any(one.selection == "random" for one in budgeted),
        "eos": any(one.eos_treatment == "low_confidence" for one in budgeted),
    }
    adapts = [one.threshold is not None or one.factor is not None for one in params]
    whole = [one.block_length if one.reveal == "transfer" and one.block_length else 2**31 for one in params]
    return RevealRules(
        used=frozenset(name for name, is_needed in needs.items() if is_needed),
        is_predrawn=table([one.reveal in PREDRAWN for one in params], torch.bool),
        is_cutoff=table([one.reveal == "confidence" for one in params], torch.bool),
        by_draw=table([one.selection == "random" for one in params], torch.bool),
        delays_eos=table([one.eos_treatment == "low_confidence" for one in params], torch.bool),
        certainty=table([CERTAINTIES.get(one.reveal, PROBABILITY) for one in params], torch.int64),
        threshold=table([math.inf if one.threshold is None else one.threshold for one in params], torch.float32),
        factor=table([-1.0 if one.factor is None else one.factor for one in params], torch.float32),
        least=table([int(one) for one in adapts], torch.int64),
        block_length=table(whole, torch.int64),
        order_temperature=table([one.reveal_temperature for one in params], torch.float32),
    )


def current_block(rules: RevealRules, is_hidden: Tensor) -> Tensor:
    """Return `[B, R]` bool: the hidden positions of each row's leftmost block that has any."""
    R = is_hidden.shape[1]
    columns = torch.arange(R, device=is_hidden.device)
    first = torch.where(is_hidden, columns, R).amin(1)
    end = (first // rules.block_length + 1) * rules.block_length
    return is_hidden & (columns < end[:, None])


def order_scores(rules: RevealRules, confidence: Tensor, certainty: Tensor | None, is_eos: Tensor, draws: Tensor | None) -> Tensor:
    """Return `[B, R]` fp32, how early each predicted position is revealed (larger is earlier).

    confidence, certainty: of the tokens just predicted. draws: `[B, R]` in (0, 1), where a rule draws or puts noise on the order: adding
    Gumbel noise to score / temperature and taking the largest draws without replacement from softmax(score / temperature) (Dream).
    """
    score = confidence
    if certainty is not None:
        score = torch.where(rules.certainty[:, None] == PROBABILITY, score, certainty)
    if "draw" in rules.used:
        score = torch.where(rules.by_draw[:, None], draws, score)
    if "eos" in rules.used:
        score = torch.where(rules.delays_eos[:, None] & is_eos, score - EOS_PENALTY, score)
    if "noise" in rules.used:
        temperature = rules.order_temperature[:, None]
        noisy = score / torch.where(temperature > 0, temperature, 1.0) - torch.log(-torch.log(draws))
        score = torch.where(temperature > 0, noisy, score)
    return score


def surest(rules: RevealRules, score: Tensor, candidates: Tensor, wanted: Tensor) -> Tensor:
    """Return which `candidates` `[B, R]` are revealed: the `wanted` `[B]` surest, and what threshold and factor add.

    threshold: everything at least that sure. factor f: the n surest, n the longest run in which the k-th surest is at least
    1 - f / (k + 1) sure (Fast-dLLM, arXiv 2505.22618). Ties go to the left.
    """
    ranked, order = torch.where(candidates, score, -torch.inf).sort(dim=1, descending=True, stable=True)
    lanes = torch.arange(score.shape[1], device=score.device)
    is_sure = (ranked >= 1.0 - rules.factor[:, None] / (lanes + 2)) & (rules.factor[:, None] >= 0) & (ranked > -torch.inf)
    wanted = torch.maximum(wanted.clamp(min=rules.least), is_sure.long().cumprod(1).sum(1))
    rank = torch.empty_like(order).scatter_(1, order, lanes.expand_as(order))
    return candidates & ((rank < wanted[:, None]) | (score >= rules.threshold[:, None]))


def above_cutoff(score: Tensor, is_open: Tensor, is_hidden: Tensor, cutoff: Tensor) -> Tensor:
    """Return which hidden positions are revealed by DiffuLLaMA's confidence rule.

    The threshold is the score of rank `cutoff` `[B]` (from 0, ascending) among all initially hidden positions `is_open`, revealed ones
    with their fresh scores included; positions below it stay hidden. So fewer than `cutoff` may be hidden after the step.
    """
    ascending = torch.where(is_open, score, torch.inf).sort(dim=1).values
    threshold = ascending.gather(1, cutoff[:, None])
    return is_hidden & ~(score < threshold)
