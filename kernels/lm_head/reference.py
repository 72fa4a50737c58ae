"""LM head and token choice for the rows that are read, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from ..choose_token.reference import choose_token


def lm_head(
    rows: Tensor,
    weight: Tensor,
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
    """Choose one token per hidden row, and say how probable it was.

    token, confidence = choose_token(rows W^T, ...);  the logits are rounded to the dtype of `rows`, then widened to fp32.

    Args:
        rows: `[N, D]`, final norm applied. weight: `[V, D]`, same dtype, last axis contiguous.
        the others: those of `choose_token`, one entry per row.
    Returns:
        (token `[N]` int64, confidence `[N]` fp32), see `choose_token`.
    Raises:
        ValueError: rows and weight disagree, or bias_values does not fit.
    """
    check(rows, weight, bias_ids, bias_values)
    rule = (uniforms, temperature, top_k, top_p, drop_crossing, full_confidence, bias_ids, bias_values)
    return choose_token(torch.nn.functional.linear(rows, weight), *rule, max_top_k=max_top_k, samples_all=samples_all)


def check(rows: Tensor, weight: Tensor, bias_ids: Tensor, bias_values: Tensor) -> None:
    """Raise ValueError where rows and weight are not matrices of one width and dtype, or bias_values does not fit."""
    if rows.ndim != 2 or weight.ndim != 2 or rows.shape[1] != weight.shape[1] or rows.dtype != weight.dtype:
        raise ValueError(
            f"lm_head: rows are {tuple(rows.shape)} {rows.dtype} and weight is {tuple(weight.shape)} {weight.dtype}, "
            "expected [N, D] and [V, D] of one dtype."
        )
    wanted = (rows.shape[0], bias_ids.shape[0])
    if bias_values.shape != wanted:
        raise ValueError(f"lm_head: bias_values is {tuple(bias_values.shape)}, expected {wanted} to match rows and bias_ids.")
