"""LAD's objective: restore answers that were masked, swapped, duplicated and shifted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..losses import chunked_cross_entropy, position_weights
from .objective import CleanBatch, Setting


@dataclass(frozen=True)
class WeighedBatch:
    """Noised canvases `[B, T]`, the rows and positions whose loss counts, their targets and weights, and the divisor they add.

    mask: `[T, T]` bool, which key each query may see; None is all.
    """

    ids: Tensor
    row: Tensor
    position: Tensor
    target: Tensor
    weight: Tensor
    divisor: Tensor
    mask: Tensor | None = None


class LadObjective:
    """Cross-entropy at the positions `config.loss` names, after structured noise (LAD paper, Algorithm 1)."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting

    def draw(self, clean: CleanBatch) -> WeighedBatch:
        """Corrupt the answers and pick the rows whose loss counts."""
        config, mask_id = self._setting.config, self._setting.mask_id
        lengths = torch.full_like(clean.answer_start, clean.ids.shape[1])
        noised, level = self._setting.ops.structured_noise(
            clean.ids, clean.answer_start, lengths, clean.seeds, clean.draw, mask_id, config.corruption
        )
        weights, divisor = position_weights(
            config.loss, clean.ids, noised, clean.answer_start, clean.first_eos, level, mask_id, config.kept_weight, config.eos_pad_weight
        )
        if config.predicts_next_token:
            # Nothing stands before position 0, so no row predicts it.
            weights[:, 0] = 0.0
        return weigh(clean.ids, noised, weights, divisor)

    def loss(self, model: Any, batch: WeighedBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted sum of cross-entropies of one micro-batch."""
        return weighed_loss(model, batch, self._setting), {}


def weigh(clean: Tensor, noised: Tensor, weights: Tensor, divisor: float | None, mask: Tensor | None = None) -> WeighedBatch:
    """Gather the positions `[B, T]` whose weight is above 0; without a divisor the sum of weights is one."""
    row, position = (weights > 0).nonzero(as_tuple=True)
    weight = weights[row, position]
    total = weight.sum() if divisor is None else torch.tensor(divisor, device=clean.device)
    return WeighedBatch(noised, row, position, clean[row, position], weight, total, mask)


def weighed_loss(model: Any, batch: WeighedBatch, setting: Setting) -> Tensor:
    """Return sum_n weight_n CE_n over the rows that predict the gathered positions."""
    head, config = model.head, setting.config
    hidden = model.hidden(batch.ids, None, config.grad_checkpointing, batch.mask)
    rows = hidden[batch.row, head.row_of(batch.position)]
    return chunked_cross_entropy(head.logits, rows, batch.target, batch.weight, config.label_smoothing, setting.head_parameters)
