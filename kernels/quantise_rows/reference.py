"""Symmetric quantisation of each row to 8 bits by its own scale, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

# The largest magnitude of each 8-bit type that is used; int8 leaves -128 out, so that the range is symmetric.
LIMITS = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
# The least magnitude a row's scale is made from: a row of zeros has a scale too, and its quotient stays finite.
LEAST_AMAX = 2.0**-64


def quantise_rows(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Quantise every row of `x` so that its largest magnitude becomes the largest of `dtype`.

    m = max(max|x|, 2^-64);  scale = m * (1 / limit);  q = round(x * ((1 / m) * limit)), ties to even; all in fp32. x is about q * scale.

    Args:
        x: `[..., D]`, finite. dtype: int8 (limit 127) or float8_e4m3fn (limit 448).
    Returns:
        (q, scale): `[..., D]` of `dtype`, and `[...]` fp32.
    Raises:
        ValueError: dtype is another.
    """
    limit = limit_of(dtype)
    wide = x.float()
    largest = wide.abs().amax(-1).clamp(min=LEAST_AMAX)
    # Reciprocals and products only: a division by a Python number is rounded differently on a CPU and on a GPU.
    scaled = wide * (largest.reciprocal() * limit)[..., None]
    return (scaled.round() if dtype == torch.int8 else scaled).to(dtype), largest * (1.0 / limit)


def limit_of(dtype: torch.dtype) -> float:
    """Return the largest magnitude of an 8-bit type; ValueError for any other dtype."""
    if dtype not in LIMITS:
        raise ValueError(f"quantise_rows: dtype is {dtype}, expected torch.int8 or torch.float8_e4m3fn.")
    return LIMITS[dtype]
