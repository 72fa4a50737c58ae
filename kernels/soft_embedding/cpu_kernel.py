"""Probabilities in C++, a chunk of rows at a time, and the library's product with the table: no noise is ever in memory."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._cpu import soft_probabilities as _soft_probabilities
from .reference import check

# Rows whose probabilities exist at once; with fewer the table would be read more often than its product takes.
ROWS_PER_CHUNK = 128


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
    """Contract of the reference; CPU tensors. Memory: `ROWS_PER_CHUNK` rows of fp32 probabilities."""
    check(table, tokens, shift, spread, seeds, positions, steps, previous, noise)
    (V, D), N = table.shape, tokens.shape[0]
    out = torch.empty(N, D, dtype=table.dtype)
    p = torch.empty(min(N, ROWS_PER_CHUNK), V)
    for start in range(0, N, ROWS_PER_CHUNK):
        part = slice(start, start + ROWS_PER_CHUNK)
        columns = [column[part] for column in (tokens, shift, spread, seeds, positions, steps)]
        own = p[: columns[0].shape[0]]
        old, z = (None if matrix is None else _with_rows(matrix[part]) for matrix in (previous, noise))
        _soft_probabilities(*columns, purpose, old, z, own, torch.get_num_threads())
        torch.mm(own.to(table.dtype), table, out=out[part])
    return out


def _with_rows(x: Tensor) -> Tensor:
    """Return a matrix whose last axis is contiguous, in a type the vector loops know."""
    x = x if x.dtype in (torch.float32, torch.bfloat16) else x.float()
    return x if x.stride(-1) == 1 else x.contiguous()
