"""What Triton kernels share."""

from __future__ import annotations

import triton
import triton.language as tl

IS_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def loop_bound(n):
    """Return `n` for use in tl.range; the interpreter's scalars are arrays of one element, which NumPy 2.4 no longer takes for a number."""
    if IS_INTERPRETED:
        return n.handle.data.item()
    else:
        return n
