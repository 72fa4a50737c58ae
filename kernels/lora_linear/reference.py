"""A linear layer with low-rank paths beside its frozen weight: some for every row, or one adapter of a stack per row; plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# (a [R, in], b [stop - start, R], scale, start, stop): rows [start, stop) of the weight gain scale * B A.
LowRankPath = tuple[Tensor, Tensor, float, int, int]
# (a [A, P, R, in], b [A, out, R], scales [A] fp32, index [M] int64, parts): parts are P pairs (start, stop) of weight rows.
LowRankStack = tuple[Tensor, Tensor, Tensor, Tensor, tuple[tuple[int, int], ...]]
# q, k and v: no weight of a decoder is fused from more.
MAX_PARTS = 3


def lora_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, paths: Sequence[LowRankPath] = (), stack: LowRankStack | None = None
) -> Tensor:
    """Apply a linear layer and add each path, or each row's own adapter, to its slices of the output (Hu et al. 2021, equation 3).

    y = x W^T + bias;  y[..., start:stop] += scale * (x A^T) B^T, every product rounded to the dtype of `x`.

    Args:
        x: `[..., in]`. weight: `[out, in]`. bias: `[out]` or None. paths: slices that do not overlap, in any order.
        stack: A adapters of equal shape in the dtype of `x`, ranks padded with zeros. M divides the rows of `x`; entry m of the index is
            the adapter of the m-th N/M rows, -1 for none. Part p uses a[:, p] and the rows [start, stop) of b; ascending, no overlap.
    Returns:
        `[..., out]`, dtype of `x`. No tensor is read on the host.
    Raises:
        ValueError: a path or the stack does not fit the weight, or both are given.
    """
    if stack is not None:
        check_stack(x, weight, paths, stack)
    y = torch.nn.functional.linear(x, weight, bias)
    if stack is not None:
        return _add_stack(y, x, stack)
    if not paths:
        return y
    pieces, end = [], 0
    for a, b, scale, start, stop in sorted_paths(weight, paths):
        if start > end:
            pieces.append(y[..., end:start])
        low = torch.nn.functional.linear(x, a.to(x.dtype))
        pieces.append(y[..., start:stop] + torch.nn.functional.linear(low, b.to(x.dtype)) * scale)
        end = stop
    if end < weight.shape[0]:
        pieces.append(y[..., end:])
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=-1)


def sorted_paths(weight: Tensor, paths: Sequence[LowRankPath]) -> list[LowRankPath]:
    """Return the paths in the order of their rows; ValueError where one does not fit the weight or two overlap."""
    ordered, end = sorted(paths, key=lambda path: path[3]), 0
    for a, b, _, start, stop in ordered:
        if start < end or stop > weight.shape[0] or b.shape[0] != stop - start or a.shape[1] != weight.shape[1]:
            raise ValueError(
                f"lora_linear: path rows [{start}, {stop}) with a {tuple(a.shape)} and b {tuple(b.shape)} "
                f"do not fit weight {tuple(weight.shape)} after row {end}."
            )
        end = stop
    return ordered


def check_stack(x: Tensor, weight: Tensor, paths: Sequence[LowRankPath], stack: LowRankStack) -> None:
    """Raise ValueError where the stack does not fit x and the weight, or paths are given besides."""
    a, b, scales, index, parts = stack
    out_width, in_width = weight.shape
    if paths:
        raise ValueError(f"lora_linear: {len(paths)} paths are given beside a stack, expected one form or the other.")
    bounds = [0, *(bound for part in parts for bound in part), out_width]
    if not 1 <= len(parts) <= MAX_PARTS or bounds != sorted(bounds):
        raise ValueError(f"lora_linear: parts are {parts}, expected 1 to {MAX_PARTS} ascending ranges within {out_width} rows.")
    A, R = scales.shape[0], b.shape[-1]
    if a.shape != (A, len(parts), R, in_width) or b.shape != (A, out_width, R):
        raise ValueError(
            f"lora_linear: the stack is a {tuple(a.shape)}, b {tuple(b.shape)}, scales {tuple(scales.shape)}, expected "
            f"[A, {len(parts)}, R, {in_width}], [A, {out_width}, R] and [A]."
        )
    rows = x.numel() // max(in_width, 1)
    if index.ndim != 1 or not index.numel() or rows % index.numel():
        raise ValueError(f"lora_linear: index is {tuple(index.shape)}, expected [M] with M a divisor of the {rows} rows of x.")


def _add_stack(y: Tensor, x: Tensor, stack: LowRankStack) -> Tensor:
    a, b, scales, index, parts = stack
    M = index.shape[0]
    rows, out = x.reshape(M, -1, x.shape[-1]), y.reshape(M, -1, y.shape[-1])
    own = index.clamp(min=0)
    has_adapter = (index >= 0)[:, None, None]
    a, b, scales = a.index_select(0, own), b.index_select(0, own), scales.index_select(0, own)[:, None, None]
    pieces, end = [], 0
    for part, (start, stop) in enumerate(parts):
        low = rows @ a[:, part].transpose(1, 2)
        delta = ((low @ b[:, start:stop].transpose(1, 2)).float() * scales).to(y.dtype)
        plain = out[..., start:stop]
        # Selected, not multiplied by zero: a row without an adapter keeps its bits.
        pieces += [out[..., end:start], torch.where(has_adapter, plain + delta, plain)]
        end = stop
    return torch.cat([*pieces, out[..., end:]], dim=-1).view(y.shape)
