"""What the CPU backends share: threads, layouts the extension takes, and products in 16 bits on a processor that has none."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from .._cpu import convert as _convert

FLOATS = (torch.float32, torch.bfloat16)
# Rows of a 16-bit weight that are widened at a time: with their width they stay in the second-level cache.
WIDE_VALUES = 1 << 18


@functools.cache
def multiplies_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16; without, fp32 products of widened operands take a fifth of the library's time."""
    # Not public in torch 2.11 to 2.13; a torch without it leaves the product to the library, which is right everywhere.
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return probe is None or bool(probe())


def flat(x: Tensor) -> Tensor:
    """Return `x` `[..., D]` as contiguous `[N, D]`."""
    return x.reshape(-1, x.shape[-1]).contiguous()


def with_rows(x: Tensor) -> Tensor:
    """Return a matrix whose last axis is contiguous, and in a type the vector loops know."""
    x = x if x.dtype in FLOATS else x.float()
    return x if x.shape[-1] <= 1 or x.stride(-1) == 1 else x.contiguous()


def convert(x: Tensor, out: Tensor) -> Tensor:
    """Copy rows of bfloat16 into fp32, or round fp32 into bfloat16."""
    _convert(x, out, torch.get_num_threads())
    return out


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x W^T + bias `[N, out]`, rounded once; where that is faster in fp32, with the weight of 16 bits widened piece by piece."""
    if x.dtype != torch.bfloat16 or multiplies_bfloat16():
        return torch.nn.functional.linear(x, weight, bias)
    N, (width, D) = x.shape[0], weight.shape
    weight = with_rows(weight)
    rows = convert(with_rows(x), torch.empty(N, D))
    out = torch.empty(N, width, dtype=torch.bfloat16)
    step = max(16, WIDE_VALUES // D)
    wide, sums = torch.empty(min(step, width), D), torch.empty(N * min(step, width))
    for start in range(0, width, step):
        part = slice(start, min(start + step, width))
        piece = convert(weight[part], wide[: part.stop - start])
        product = sums[: N * len(piece)].view(N, len(piece))
        if bias is None:
            torch.mm(rows, piece.t(), out=product)
        else:
            torch.addmm(bias[part].float(), rows, piece.t(), out=product)
        convert(product, out[:, part])
    return out
