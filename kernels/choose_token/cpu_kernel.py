"""Choose tokens in C++: one pass over a row keeps the best candidates and the mass, block by block in the first-level cache."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._cpu import TokenScan
from ..device_cpu import with_rows
from .reference import check

# A longer list is ordered after the pass instead of during it.
MAX_CANDIDATES = 1024


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
    """Contract of the reference; CPU tensors. The same bits on every instruction path and for any number of threads."""
    check(logits, bias_ids, bias_values)
    N, V = logits.shape
    rule = (uniforms, temperature, top_k, top_p, drop_crossing, full_confidence)
    token, confidence = torch.empty(N, dtype=torch.int64), torch.empty(N)
    if N:
        scan = TokenScan("choose_token", *rule, bias_ids.contiguous(), with_rows(bias_values), V, kept_candidates(max_top_k, V))
        scan.choose(with_rows(logits), samples_all, torch.get_num_threads(), token, confidence)
    return token, confidence


def kept_candidates(max_top_k: int, V: int) -> int:
    """Return how many candidates a scan keeps, 0 where each row is ordered as far as its filters need."""
    return min(max_top_k, V) if max_top_k <= MAX_CANDIDATES else 0
