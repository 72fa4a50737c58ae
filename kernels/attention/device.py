"""What the attention kernels share: one step of the running softmax (Milakov and Gimelshein 2018, algorithm 3)."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def fold_block(scores, v, acc, total, top, scale_log2):
    """Fold the scores `[M, N]` of one block of keys and its values `[N, K]` into the sum, the normaliser and the largest score so far."""
    new_top = tl.maximum(top, tl.max(scores, axis=1) * scale_log2)
    p = tl.exp2(scores * scale_log2 - new_top[:, None])
    shrink = tl.exp2(top - new_top)
    total = total * shrink + tl.sum(p, axis=1)
    acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
    return acc, total, new_top
