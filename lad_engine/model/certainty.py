"""How sure a distribution over the vocabulary is, beyond the probability of its token (Dream's rules topk_margin and entropy)."""

from __future__ import annotations

import torch
from torch import Tensor

MARGIN, ENTROPY = 1, 2
# Keeps the logarithm of a probability of 0 finite, as Dream does.
EPSILON = 1e-10


def certainty_of(
    logits: Tensor,
    kind: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    drop_crossing: Tensor,
    full_confidence: Tensor,
    bias_ids: Tensor,
    bias_values: Tensor,
    *,
    max_top_k: int,
) -> Tensor:
    """Return how sure each row is.

    kind 1: p_1 - p_2 of the two most probable tokens;  2: sum_v p_v log(p_v + 1e-10), the negative entropy;  else p_1.
    p = softmax((logits + bias) / temperature) over the whole vocabulary where full_confidence or nothing is filtered, else over the
    candidates that top-k and then top-p leave. temperature 0 counts as 1.

    Args:
        logits: `[N, V]` fp32. kind: `[N]` int64. The others as `choose_token` takes them.
    Returns:
        `[N]` fp32.
    """
    scores = logits.index_add(1, bias_ids, bias_values)
    scale = torch.where(temperature == 0, 1.0, temperature)[:, None]
    V = logits.shape[1]
    values = torch.topk(scores, V if max_top_k == 0 else min(max(max_top_k, 2), V), dim=1).values
    top = values[:, :1]
    weights, kept = ((scores - top) / scale).exp(), ((values - top) / scale).exp()
    rank = torch.arange(kept.shape[1], device=kept.device)
    kept = torch.where((rank < top_k[:, None]) | (top_k == 0)[:, None], kept, 0.0)
    cumulative = kept.cumsum(1)
    mass = torch.where(drop_crossing[:, None], cumulative, torch.nn.functional.pad(cumulative, (1, -1)))
    stays = (mass <= top_p[:, None] * cumulative[:, -1:]) | (top_p >= 1)[:, None] | (rank == 0)
    kept = torch.where(stays, kept, 0.0)
    is_whole = full_confidence | ((top_k == 0) & (top_p >= 1))
    total = torch.where(is_whole, weights.sum(1), kept.sum(1))
    best = torch.where(is_whole[:, None], ((values[:, :2] - top) / scale).exp(), kept[:, :2]) / total[:, None]
    entropy = torch.where(is_whole, _negative_entropy(weights / total[:, None]), _negative_entropy(kept / total[:, None]))
    return torch.where(kind == MARGIN, best[:, 0] - best[:, 1], torch.where(kind == ENTROPY, entropy, best[:, 0]))


def _negative_entropy(p: Tensor) -> Tensor:
    return (p * torch.log(p + EPSILON)).sum(1)
