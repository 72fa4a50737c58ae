"""The rotation that rotary and packed_attention share."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rotated(first, second, cos, sin, dtype):
    """Return both halves of the pairs (first, second) turned by their angles: widened to fp32, rounded once to `dtype`."""
    first, second = first.to(tl.float32), second.to(tl.float32)
    return (first * cos - second * sin).to(dtype), (second * cos + first * sin).to(dtype)
