"""The state update in C++: every rule of a row in one walk over its positions, without a tensor in between."""

from __future__ import annotations

from torch import Tensor

from ..._cpu import update as _update
from .buffers import RULES, UpdateBuffers, UpdateRules, UpdateTables

# Bits of the rules a batch uses, as csrc/cpu/update.h numbers them.
BITS = {"none": 0, "random": 1, "weighted": 1, "confidence": 2, "clusters": 4, "bernoulli": 4, "retain": 8, "transfer": 16}
BITS |= {"split": 32, "threshold": 64}


def update(
    buffers: UpdateBuffers,
    rules: UpdateRules,
    tables: UpdateTables,
    token: Tensor,
    confidence: Tensor,
    *,
    mask_id: int,
    used: frozenset[str],
) -> None:
    """Contract of the reference; CPU tensors, whose shapes and types the extension checks when it first reads them.

    It knows the tensors of the last batches again by identity, so none of them may be given another storage in between.
    """
    if used - BITS.keys():
        raise ValueError(f"update: used is {sorted(used)}, expected names among {', '.join(RULES)}.")
    bits = 0
    for rule in used:
        bits |= BITS[rule]
    _update(buffers, rules, tables, token, confidence, mask_id, bits)
