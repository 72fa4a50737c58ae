"""LAD's objective: restore answers that were masked, swapped, duplicated and shifted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...kernels.random.reference import CORRUPT_LEVEL
from ..losses import chunked_cross_entropy, position_weights
from .objective import CleanBatch, Setting

# structured_noise takes the CORRUPT_LEVEL draws at index 0 to 3; this one says whether the whole answer is masked.
WHOLE_MASK_INDEX = 4


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
        if config.whole_mask_share:
            noised, level = self._begun(clean, noised, level)
        weights, divisor = position_weights(
            config.loss, clean.ids, noised, clean.answer_start, clean.first_eos, level, mask_id, config.kept_weight, config.eos_pad_weight
        )
        if config.predicts_next_token:
            # Nothing stands before position 0, so no row predicts it.
            weights[:, 0] = 0.0
        return weigh(clean.ids, noised, weights, divisor)

    def _begun(self, clean: CleanBatch, noised: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        """Mask the whole answer of some examples, EOS padding included, as a decode finds it."""
        setting = self._setting
        index = torch.full((1,), WHOLE_MASK_INDEX, device=clean.ids.device)
        is_whole = setting.ops.uniform(clean.seeds, index, clean.draw, CORRUPT_LEVEL) < setting.config.whole_mask_share  # [B, 1]
        is_answer = torch.arange(clean.ids.shape[1], device=clean.ids.device)[None] >= clean.answer_start[:, None]
        return torch.where(is_whole & is_answer, setting.mask_id, noised), torch.where(is_whole[:, 0], 1.0, level)

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
