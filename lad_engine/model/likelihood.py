"""How probable a masked diffusion model holds a text: T masked copies of it, read at once (DiffuLLaMA's `eval_forward`, and its bound)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import RequestError
from .language_model import LanguageModel

COPIES_PER_FORWARD = 8
ROWS_PER_CHUNK = 512


@dataclass(frozen=True)
class Likelihood:
    """What T masked copies of a text cost.

    mean_loss: the mean over the levels t = 1 .. T of the mean cross-entropy of the masked tokens, a level without any counting 0: what
    DiffuLLaMA's code compares choices by (lower is better). bound: mean over the levels of (T / t) times the summed cross-entropy of the
    masked tokens, an upper bound of -log p(scored tokens) in nats (the paper's 1/t). tokens: scored; rows: read through the head.
    """

    mean_loss: float
    bound: float
    tokens: int
    rows: int


def score_text(
    model: LanguageModel,
    ids: Sequence[int],
    is_scored: Sequence[bool],
    mask_id: int,
    *,
    uniform: Callable[..., Any],
    copies: int = 32,
    seed: int = 0,
    purpose: int = 5,
) -> Likelihood:
    """Mask each scored token by itself with probability t / T in copy t = 1 .. T, and sum how well each is predicted.

    Args:
        ids, is_scored: `[N]` the text, and which of its tokens count; position 0 of a shifted model cannot. uniform: the op `random`.
            copies: T. purpose: of the random numbers, one per (position, copy).
    Raises:
        RequestError: nothing is scored, or a token that nothing predicts.
    """
    device = model.head.norm.device
    clean, scored = torch.tensor(ids, device=device), torch.tensor(is_scored, device=device)
    count = int(scored.sum())
    if not count or len(ids) != len(is_scored) or copies < 1:
        raise RequestError(f"score: {count} of {len(ids)} tokens are scored in {copies} copies, expected at least one of each.")
    if model.head.predicts_next_token and bool(scored[0]):
        raise RequestError("score: the first token is scored, but no row of a shifted model predicts it. Put a BOS in front.")
    seeds, columns = torch.tensor([seed], device=device), torch.arange(len(ids), device=device)
    draws = torch.cat([uniform(seeds, columns, torch.tensor(copy, device=device), purpose) for copy in range(copies)])  # [T, N]
    levels = torch.arange(1, copies + 1, device=device, dtype=torch.float64) / copies
    is_masked = scored & (draws.double() < levels[:, None])
    noised = torch.where(is_masked, mask_id, clean)
    losses = [
        _losses(model, noised[start : start + COPIES_PER_FORWARD], is_masked[start : start + COPIES_PER_FORWARD], clean)
        for start in range(0, copies, COPIES_PER_FORWARD)
    ]
    summed = torch.cat(losses)
    masked = is_masked.sum(1)
    mean_loss = (summed / masked.clamp(min=1)).mean()
    return Likelihood(float(mean_loss), float((summed / levels).mean()), count, int(masked.sum()))


def _losses(model: LanguageModel, noised: Tensor, is_masked: Tensor, clean: Tensor) -> Tensor:
    """Return the summed cross-entropy of the masked tokens of each copy `[T']` fp64; only their rows go through the head."""
    copy, position = is_masked.nonzero(as_tuple=True)
    out = torch.zeros(len(noised), dtype=torch.float64, device=noised.device)
    if not len(copy):
        return out
    rows = model.hidden(noised)[copy, model.head.row_of(position)]
    for start in range(0, len(rows), ROWS_PER_CHUNK):
        part = slice(start, start + ROWS_PER_CHUNK)
        loss = torch.nn.functional.cross_entropy(model.head.logits(rows[part]), clean[position[part]], reduction="none")
        out.index_add_(0, copy[part], loss.double())
    return out
