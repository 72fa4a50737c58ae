"""Validation with the same noise every time: how well hidden and damaged answer tokens are recovered at fixed levels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .batches import Batch, lay_out_batch
from .data import Examples
from .losses import ROWS_PER_CHUNK

LEVELS = (("masked_30", "mask_only", 0.3), ("masked_60", "mask_only", 0.6), ("masked_100", "mask_only", 1.0), ("structured", "paper", 0.15))
TAIL = 4


@dataclass(frozen=True)
class ValidationSet:
    """Clean canvases, the same at every call: the first examples by text key, sorted by length."""

    batches: tuple[Batch, ...]

    @classmethod
    def build(cls, examples: Examples, count: int, batch_size: int, eos_id: int, max_length: int) -> ValidationSet:
        chosen = np.argsort(examples.key, kind="stable")[:count]
        chosen = chosen[np.argsort(examples.total[chosen], kind="stable")]
        parts = [chosen[i : i + batch_size] for i in range(0, len(chosen), batch_size)]
        return cls(tuple(lay_out_batch(examples, part, eos_id, min(int(examples.total[part].max()) + TAIL, max_length)) for part in parts))


@torch.no_grad()
def validate(model: Any, ops: Any, data: ValidationSet, mask_id: int, device: torch.device) -> dict[str, float]:
    """Return loss and recovered share (argmax equals the original) over corrupted answer tokens, the closing EOS included, per level.

    Keys: val_loss (mean over levels), val_loss_<level>, val_recovered_<level>.
    """
    out: dict[str, float] = {}
    for name, variant, level in LEVELS:
        totals = torch.zeros(3, dtype=torch.float64)
        for batch in data.batches:
            totals += score_level(model, ops, batch, mask_id, device, variant, level)
        count = max(float(totals[2]), 1.0)
        out[f"val_loss_{name}"], out[f"val_recovered_{name}"] = float(totals[0]) / count, float(totals[1]) / count
    out["val_loss"] = sum(out[f"val_loss_{name}"] for name, _, _ in LEVELS) / len(LEVELS)
    return out


def score_level(model: Any, ops: Any, batch: Batch, mask_id: int, device: torch.device, variant: str, level: float) -> Tensor:
    """Return (summed loss, recovered, count) `[3]` fp64 over the answer tokens that one level of corruption changes."""
    ids, start = batch.ids.to(device), batch.answer_start.to(device)
    lengths = torch.full_like(start, ids.shape[1])
    step = torch.zeros((), dtype=torch.int64, device=device)
    noised, _ = ops.structured_noise(ids, start, lengths, batch.keys.to(device), step, mask_id, variant, level)
    counted = (noised != ids) & (torch.arange(ids.shape[1], device=device)[None] <= batch.first_eos.to(device)[:, None])
    row, position = counted.nonzero(as_tuple=True)
    hidden = model.hidden(noised)[row, model.head.row_of(position)]
    targets = ids[row, position]
    out = torch.zeros(3, dtype=torch.float64)
    for begin in range(0, len(targets), ROWS_PER_CHUNK):
        part = slice(begin, begin + ROWS_PER_CHUNK)
        logits = model.head.logits(hidden[part])
        out[0] += torch.nn.functional.cross_entropy(logits, targets[part], reduction="sum").item()
        out[1] += (logits.argmax(1) == targets[part]).sum().item()
    out[2] = len(targets)
    return out
