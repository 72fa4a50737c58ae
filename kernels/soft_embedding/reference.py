"""The expected embedding of a noised simplex and of the prediction before it, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from ..random.reference import normal


def soft_embedding(
    table: Tensor,
    tokens: Tensor,
    shift: Tensor,
    spread: Tensor,
    seeds: Tensor,
    positions: Tensor,
    steps: Tensor,
    purpose: int,
    previous: Tensor | None,
    noise: Tensor | None = None,
) -> Tensor:
    """Embed each row's noised token as the mean of all embeddings under its simplex, averaged with the previous prediction.

    s_v = shift [v = token] + spread z_v;  p = (softmax(s) + softmax(previous)) / 2, or softmax(s) without a previous prediction;
    out = p table.  z is `noise`, or where that is None `random.normal(seeds, positions, steps, purpose, V)`: the same numbers every
    time, so that nobody keeps them. (TESS 2: with shift = 2 k sqrt(abar) and spread = k sqrt(1 - abar), s is its simplex up to a
    constant, which softmax does not see.)

    Scores, softmaxes and p in fp32; p is rounded to the dtype of `table`; sums of products in fp32, rounded once.
    Args:
        table: `[V, D]`. tokens: `[N]` int64, -1 for a row of noise alone. shift, spread: `[N]` fp32, spread at least 0.
        seeds, positions, steps: `[N]` int64. purpose: see `kernels/random`.
        previous: `[N, V]` logits of any float dtype, last axis contiguous. noise: `[N, V]` fp32.
    Returns:
        `[N, D]`, dtype of `table`.
    Raises:
        ValueError: a shape disagrees.
    """
    check(table, tokens, shift, spread, seeds, positions, steps, previous, noise)
    V = table.shape[0]
    scores = normal(seeds, positions, steps, purpose, V) if noise is None else noise
    scores = scores * spread[:, None]
    scores += torch.where(torch.arange(V, device=table.device) == tokens[:, None], shift[:, None], 0.0)
    p = torch.softmax(scores, 1)
    if previous is not None:
        p = p.add_(torch.softmax(previous.float(), 1)).mul_(0.5)
    return p.to(table.dtype) @ table


def check(
    table: Tensor,
    tokens: Tensor,
    shift: Tensor,
    spread: Tensor,
    seeds: Tensor,
    positions: Tensor,
    steps: Tensor,
    previous: Tensor | None,
    noise: Tensor | None,
) -> None:
    """Raise ValueError where a shape disagrees."""
    N, V = tokens.shape[0], table.shape[0]
    columns = {"tokens": tokens, "shift": shift, "spread": spread, "seeds": seeds, "positions": positions, "steps": steps}
    for name, column in columns.items():
        if column.shape != (N,):
            raise ValueError(f"soft_embedding: {name} is {tuple(column.shape)}, expected {(N,)} to match tokens.")
    for name, matrix in (("previous", previous), ("noise", noise)):
        if matrix is not None and matrix.shape != (N, V):
            raise ValueError(f"soft_embedding: {name} is {tuple(matrix.shape)}, expected {(N, V)} to match tokens and table.")
