"""Put noise back: draw a fixed number of positions without replacement and set them to MASK, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from ..random.reference import RENOISE, uniform

SMALLEST_WEIGHT = 2.0**-126


def renoise(
    tokens: Tensor, eligible: Tensor, weight: Tensor, count: Tensor, seeds: Tensor, step: Tensor, mask_id: int, purpose: int = RENOISE
) -> Tensor:
    """Set exactly min(count, eligible positions) of each row's eligible positions to `mask_id`.

    Position r has the key log(u_r) / weight_r in fp64 with u = uniform(seeds, r, step, purpose); the `count` largest keys are drawn,
    ties to the lower index. Equal weights make every subset equally likely; unequal ones draw one position after the other with
    probability proportional to weight (Efraimidis and Spirakis 2006, algorithm A).

    Args:
        tokens: `[B, R]` int64. eligible: `[B, R]` bool. weight: `[B, R]` fp32, values below 2^-126 count as 2^-126.
        count, seeds: `[B]` int64; a count of zero or less draws nothing. step: `[]` int64 (this reference also takes `[B]`).
    Returns:
        `[B, R]` int64.
    Raises:
        ValueError: a shape or dtype disagrees.
    """
    check(tokens, eligible, weight, count, seeds)
    B, R = tokens.shape
    columns = torch.arange(R, device=tokens.device)
    key = uniform(seeds, columns, step, purpose).double().log() / weight.double().clamp(min=SMALLEST_WEIGHT)
    order = key.masked_fill(~eligible, -torch.inf).sort(dim=1, descending=True, stable=True).indices
    rank = torch.empty_like(order).scatter_(1, order, columns.expand(B, R))
    return torch.where(eligible & (rank < count[:, None]), mask_id, tokens)


def check(tokens: Tensor, eligible: Tensor, weight: Tensor, count: Tensor, seeds: Tensor) -> None:
    """Raise ValueError where a shape or dtype disagrees."""
    if tokens.dim() != 2 or tokens.dtype != torch.int64:
        raise ValueError(f"renoise: tokens is {tuple(tokens.shape)} {tokens.dtype}, expected [B, R] torch.int64.")
    for name, value, shape, dtype in (
        ("eligible", eligible, tokens.shape, torch.bool),
        ("weight", weight, tokens.shape, torch.float32),
        ("count", count, tokens.shape[:1], torch.int64),
        ("seeds", seeds, tokens.shape[:1], torch.int64),
    ):
        if value.shape != shape or value.dtype != dtype:
            raise ValueError(f"renoise: {name} is {tuple(value.shape)} {value.dtype}, expected {tuple(shape)} {dtype} to match tokens.")
