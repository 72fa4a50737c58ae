"""Bias, temperature, filters and the draw of one token per row of logits, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

PIECE = 128


def choose_token(
    logits: Tensor,
    uniforms: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    drop_crossing: Tensor,
    full_confidence: Tensor,
    bias_ids: Tensor,
    bias_values: Tensor,
    *,
    max_top_k: int,
    samples_all: bool,
) -> tuple[Tensor, Tensor]:
    """Choose one token per row by inverse CDF, and say how probable it was.

    l = logits + bias;  candidates = the top_k largest l, ties to the lower id;  q = softmax(l / temperature) over them;  top-p keeps
    rank r when the mass before it is at most p (the crossing token stays: Hugging Face, DiffuLLaMA) or, with `drop_crossing`, when
    the mass including it is (the LAD Space); rank 0 always stays.  token = first candidate, in descending order, whose cumulative
    mass exceeds u; in id order when nothing is filtered. temperature 0 takes rank 0, with probabilities at temperature 1.
    Scores in fp32, cumulative masses in fp64.

    Args:
        logits: `[N, V]`, any float dtype, left unchanged.
        uniforms, temperature, top_p: `[N]` fp32; uniforms strictly inside (0, 1); top_p of 1 or more filters nothing.
        top_k: `[N]` int64, 0 keeps all.
        drop_crossing, full_confidence: `[N]` bool.
        bias_ids: `[M]` int64. bias_values: `[N, M]` fp32, -inf forbids; at least one token of a row stays finite.
        max_top_k: candidates that get sorted: at least every top_k of the rows; 0 sorts the vocabulary, needed when a row has
            top_p < 1 without top_k.
        samples_all: whether a row draws with neither top_k nor top_p.
    Returns:
        (token `[N]` int64, confidence `[N]` fp32): the probability of the token among the candidates that were kept, or with
        full_confidence in softmax(l / temperature) over the whole vocabulary.
    Raises:
        ValueError: logits is not a matrix, or bias_values does not fit.
    """
    check(logits, bias_ids, bias_values)
    V = logits.shape[1]
    scores = logits.to(torch.float32, copy=True).index_add_(1, bias_ids, bias_values)
    is_greedy = temperature == 0
    scale = torch.where(is_greedy, 1.0, temperature)[:, None]
    values, ids = _largest(scores, V if max_top_k == 0 else min(max_top_k, V))
    top = values[:, :1].clone()
    weights = scores.sub_(top).div_(scale).exp_()  # [N, V]
    full_total = _row_sums(weights)

    kept = _keep(values.sub(top).div(scale).exp().double(), top_k, top_p, drop_crossing)  # [N, K]
    cumulative = kept.cumsum(1)
    kept_total = cumulative[:, -1]
    rank = (cumulative <= (uniforms.double() * kept_total)[:, None]).sum(1, keepdim=True)
    rank = torch.where(is_greedy[:, None], 0, rank)
    token = ids.gather(1, rank)[:, 0]
    weight = kept.gather(1, rank)[:, 0]
    is_unfiltered = (top_k == 0) & (top_p >= 1)
    if samples_all:
        cumulative = weights.cumsum(1, dtype=torch.float64)
        drawn = torch.searchsorted(cumulative, (uniforms.double() * cumulative[:, -1])[:, None], right=True)
        draws_all = is_unfiltered & ~is_greedy
        token = torch.where(draws_all, drawn[:, 0], token)
        weight = torch.where(draws_all, weights.gather(1, drawn)[:, 0].double(), weight)
    confidence = weight / torch.where(full_confidence | is_unfiltered, full_total, kept_total)
    return token, confidence.float()


def check(logits: Tensor, bias_ids: Tensor, bias_values: Tensor) -> None:
    """Raise ValueError where logits is not a matrix, or bias_values does not fit."""
    if logits.ndim != 2:
        raise ValueError(f"choose_token: logits is {tuple(logits.shape)}, expected two axes (rows, vocabulary).")
    N = logits.shape[0]
    if bias_values.shape != (N, bias_ids.shape[0]):
        raise ValueError(f"choose_token: bias_values is {tuple(bias_values.shape)}, expected {(N, bias_ids.shape[0])} to match bias_ids.")


def _largest(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` largest of each row and their ids, descending, ties to the lower id."""
    if count == 1:
        ids = scores.argmax(1, keepdim=True)
        return scores.gather(1, ids), ids
    V = scores.shape[1]
    if count == V:
        return torch.sort(scores, dim=1, descending=True, stable=True)
    # torch.topk promises neither which of several equal scores it takes nor their order; only its values are trusted at the boundary.
    values, ids = torch.topk(scores, count, dim=1)
    last = values[:, -1:]
    ids = torch.where(values > last, ids, V).sort(dim=1).values
    above = scores.gather(1, ids.clamp(max=V - 1)).masked_fill(ids == V, -torch.inf)
    ids = ids.gather(1, above.sort(dim=1, descending=True, stable=True).indices)
    all_ids = torch.arange(V, dtype=torch.int32, device=scores.device)
    ties = torch.topk(torch.where(scores == last, all_ids, V), count, dim=1, largest=False).values
    rank = torch.arange(count, device=scores.device)
    behind = (rank - (values > last).sum(1, keepdim=True)).clamp(min=0)
    return values, torch.where(values > last, ids, ties.gather(1, behind).long())


def _keep(weights: Tensor, top_k: Tensor, top_p: Tensor, drop_crossing: Tensor) -> Tensor:
    """Zero the weights `[N, K]` (descending) of candidates that top-k and then top-p remove."""
    rank = torch.arange(weights.shape[1], device=weights.device)
    weights = torch.where((rank < top_k[:, None]) | (top_k == 0)[:, None], weights, 0.0)
    cumulative = weights.cumsum(1)
    mass = torch.where(drop_crossing[:, None], cumulative, torch.nn.functional.pad(cumulative, (1, -1)))
    stays = (mass <= top_p.double()[:, None] * cumulative[:, -1:]) | (top_p >= 1)[:, None] | (rank == 0)
    return torch.where(stays, weights, 0.0)


def _row_sums(weights: Tensor) -> Tensor:
    """Sum rows in short fp32 pieces and those in fp64: one long fp32 sum depends on how threads split it, so on N."""
    whole = weights.shape[1] // PIECE * PIECE
    pieces = weights[:, :whole].unflatten(1, (-1, PIECE)).sum(2) if whole else weights[:, :0]
    return pieces.sum(1, dtype=torch.float64) + weights[:, whole:].sum(1, dtype=torch.float64)
