"""After a prediction: which tokens stay on the canvas until the next step, each row by its own rule."""

from __future__ import annotations

import torch
from torch import Tensor

from ..random.reference import RENOISE, RETAIN, TRANSFER, uniform
from ..renoise.reference import renoise
from .buffers import StepNumbers, UpdateRules
from .commit import cluster_cover, lowest, retain, split_by_eos


def remask(
    rules: UpdateRules,
    used: frozenset[str],
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
) -> tuple[Tensor, Tensor]:
    """Put noise back into a predicted answer; rows that transfer, or never re-noise, come back unchanged.

    Args:
        predicted: `[B, R]` int64. confidence: `[B, R]` fp32. is_eos: `[B, R]` bool, of predicted. is_open: `[B, R]` bool, on the canvas.
        was_shown: `[B, R]` bool, positions that permanent_unmask protects. retained: `[B, R]` bool. seeds, step: `[B]` int64.
    Returns:
        (tokens `[B, R]`, retained `[B, R]`).
    """
    eligible = is_open & ~(was_shown & rules.is_permanent[:, None])
    columns = torch.arange(predicted.shape[1], device=predicted.device)
    tokens = predicted
    masked = torch.zeros_like(is_open)
    if used & {"random", "weighted"}:
        weight = torch.where(rules.is_weighted[:, None], torch.maximum(1 - confidence, rules.noise_clip[:, None]), 1.0)
        for pool, count in _pools(rules, used, now.count, eligible & rules.redraws[:, None], is_eos):
            tokens = renoise(tokens, pool, weight, count, seeds, step, mask_id)
    if "confidence" in used:
        score = _score(rules, confidence, is_eos)
        for pool, count in _pools(rules, used, now.count, eligible & rules.is_lowest[:, None], is_eos):
            masked = masked | lowest(score, pool, count)
    if used & {"clusters", "bernoulli"}:
        uniforms = uniform(seeds, columns, step, RENOISE)
        covered = cluster_cover(uniforms, now.visible, now.clusters, now.cluster_size)
        drawn = (uniforms.double() < now.probability[:, None]) | (is_eos & rules.delays_eos[:, None])
        masked = masked | (eligible & ((covered & rules.is_clusters[:, None]) | (drawn & rules.is_bernoulli[:, None])))
    if "retain" in used:
        drawn = uniform(seeds, columns, step, RETAIN)
        score = _score(rules, torch.where(rules.by_confidence[:, None], confidence, drawn), is_eos)
        grown = retain(score, is_open, retained, now.keep, is_eos, rules.splits)
        retained = torch.where(rules.retains[:, None], grown, retained)
        masked = masked | (eligible & ~retained & rules.retains[:, None])
    return torch.where(masked, mask_id, tokens), retained


def transferred(
    rules: UpdateRules,
    used: frozenset[str],
    now: StepNumbers,
    confidence: Tensor,
    is_eos: Tensor,
    is_masked: Tensor,
    seeds: Tensor,
    step: Tensor,
) -> Tensor:
    """Return `[B, R]` bool: the masked positions of the current block that commit at this step, none elsewhere.

    They are LLaDA's budget, and with a threshold all that are at least that sure, in the leftmost block that has a masked position, so
    that a block done early leaves its steps to the next (Fast-dLLM, arXiv 2505.22618).
    """
    columns = torch.arange(confidence.shape[1], device=confidence.device)
    score = torch.where(rules.by_confidence[:, None], confidence, uniform(seeds, columns, step, TRANSFER))
    end = now.block_end
    if "threshold" in used:
        first = torch.where(is_masked, columns, len(columns)).amin(1)
        end = torch.where(rules.threshold < torch.inf, (first // end.clamp(min=1) + 1) * end, end)
    in_block = (columns >= now.block_start[:, None]) & (columns < end[:, None])
    score, pool = _score(rules, score, is_eos), is_masked & in_block & rules.transfers[:, None]
    commits = lowest(-score, pool, now.transfer)
    return commits | (pool & (score >= rules.threshold[:, None])) if "threshold" in used else commits


def _score(rules: UpdateRules, score: Tensor, is_eos: Tensor) -> Tensor:
    # Every real score is at least 0, so a delayed EOS comes behind all other tokens.
    return torch.where(rules.delays_eos[:, None] & is_eos, -1.0, score)


def _pools(rules: UpdateRules, used: frozenset[str], count: Tensor, pool: Tensor, is_eos: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return (pool, count) pairs: one, or text and EOS apart where some row splits its budget."""
    if "split" not in used:
        return [(pool, count)]
    apart = is_eos & rules.splits[:, None]
    text, eos = split_by_eos(count, pool, is_eos)
    return [(pool & ~apart, torch.where(rules.splits, text, count)), (pool & apart, eos)]
