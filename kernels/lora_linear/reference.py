"""A linear layer with low-rank paths beside its frozen weight, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# (a [R, in], b [stop - start, R], scale, start, stop): rows [start, stop) of the weight gain scale * B A.
LowRankPath = tuple[Tensor, Tensor, float, int, int]


def lora_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, paths: Sequence[LowRankPath] = ()) -> Tensor:
    """Apply a linear layer and add each path to its slice of the output (Hu et al. 2021, equation 3).

    y = x W^T + bias;  y[..., start:stop] += scale * (x A^T) B^T, every product rounded to the dtype of `x`.

    Args:
        x: `[..., in]`. weight: `[out, in]`. bias: `[out]` or None. paths: slices that do not overlap, in any order.
    Returns:
        `[..., out]`, dtype of `x`.
    Raises:
        ValueError: a path does not fit the weight, or two overlap.
    """
    y = torch.nn.functional.linear(x, weight, bias)
    if not paths:
        return y
    pieces, end = [], 0
    for a, b, scale, start, stop in sorted(paths, key=lambda path: path[3]):
        if start < end or stop > weight.shape[0] or b.shape[0] != stop - start or a.shape[1] != weight.shape[1]:
            raise ValueError(
                f"lora_linear: path rows [{start}, {stop}) with a {tuple(a.shape)} and b {tuple(b.shape)} "
                f"do not fit weight {tuple(weight.shape)} after row {end}."
            )
        if start > end:
            pieces.append(y[..., end:start])
        low = torch.nn.functional.linear(x, a.to(x.dtype))
        pieces.append(y[..., start:stop] + torch.nn.functional.linear(low, b.to(x.dtype)) * scale)
        end = stop
    if end < weight.shape[0]:
        pieces.append(y[..., end:])
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=-1)
