"""LAD's objective: restore answers that were masked, swapped, duplicated and shifted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...kernels.random.reference import CORRUPT_LEVEL
from ..losses import Taught, chunked_cross_entropy, position_weights
from ..teacher import Reading, Teacher, distance
from .objective import CleanBatch, Setting

# structured_noise takes the CORRUPT_LEVEL draws at index 0 to 3. These say whether all is masked, whether one block counts, and which.
WHOLE_MASK_INDEX, IS_BLOCK_INDEX, WHICH_BLOCK_INDEX = 4, 5, 6


@dataclass(frozen=True)
class WeighedBatch:
    """Noised canvases `[B, T]`, the rows and positions whose loss counts, their targets and weights, and the divisor they add.

    clean: the batch before the noise. mask: `[T, T]` bool, which key each query may see; None is all.
    """

    clean: CleanBatch
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
        self._weighed = WeighedLoss(setting)

    def draw(self, clean: CleanBatch) -> WeighedBatch:
        """Corrupt the answers and pick the rows whose loss counts."""
        config, mask_id = self._setting.config, self._setting.mask_id
        lengths = torch.full_like(clean.answer_start, clean.ids.shape[1])
        noised, level = self._setting.ops.structured_noise(
            clean.ids, clean.answer_start, lengths, clean.seeds, clean.draw, mask_id, config.corruption
        )
        if config.whole_mask_share:
            noised, level = self._begun(clean, noised, level)
        in_loss = None
        if config.block_share:
            noised, in_loss = self._in_blocks(clean, noised)
        weights, divisor = position_weights(
            config.loss, clean.ids, noised, clean.answer_start, clean.first_eos, level, mask_id, config.kept_weight, config.eos_pad_weight
        )
        if in_loss is not None:
            weights = weights * in_loss
        if config.predicts_next_token:
            # Nothing stands before position 0, so no row predicts it.
            weights[:, 0] = 0.0
        return weigh(clean, noised, weights, divisor)

    def _begun(self, clean: CleanBatch, noised: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        """Mask the whole answer of some examples, EOS padding included, as a decode finds it."""
        is_whole = self._uniform(clean, WHOLE_MASK_INDEX) < self._setting.config.whole_mask_share
        is_answer = torch.arange(clean.ids.shape[1], device=clean.ids.device)[None] >= clean.answer_start[:, None]
        return torch.where(is_whole & is_answer, self._setting.mask_id, noised), torch.where(is_whole[:, 0], 1.0, level)

    def _in_blocks(self, clean: CleanBatch, noised: Tensor) -> tuple[Tensor, Tensor]:
        """Restore what stands before one block of some examples and mask what follows it; also which positions `[B, T]` the loss may read.

        The block is one of those up to the closing EOS, each as likely; inside it the noise stays as drawn, but where it hides nothing the
        block is masked whole: a decode never reads a block that it has finished.
        """
        length = self._setting.config.block_length
        is_block = self._uniform(clean, IS_BLOCK_INDEX) < self._setting.config.block_share
        offset = torch.arange(clean.ids.shape[1], device=clean.ids.device)[None] - clean.answer_start[:, None]
        count = (clean.first_eos - clean.answer_start)[:, None] // length + 1
        which = (self._uniform(clean, WHICH_BLOCK_INDEX) * count).long()
        block = offset.div(length, rounding_mode="floor")
        is_inside, mask_id = block == which, self._setting.mask_id
        hides = (is_inside & (noised == mask_id)).any(1, keepdim=True)
        inside = torch.where(hides, noised, mask_id)
        seen = torch.where(block < which, clean.ids, torch.where(is_inside, inside, mask_id))
        return torch.where(is_block, seen, noised), ~is_block | is_inside

    def _uniform(self, clean: CleanBatch, index: int) -> Tensor:
        """Draw one uniform per example `[B, 1]`."""
        return self._setting.ops.uniform(clean.seeds, torch.full((1,), index, device=clean.ids.device), clean.draw, CORRUPT_LEVEL)

    def loss(self, model: Any, batch: WeighedBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted sum of cross-entropies of one micro-batch."""
        return self._weighed(model, batch)


def weigh(clean: CleanBatch, noised: Tensor, weights: Tensor, divisor: float | None, mask: Tensor | None = None) -> WeighedBatch:
    """Gather the positions `[B, T]` whose weight is above 0; without a divisor the sum of weights is one."""
    row, position = (weights > 0).nonzero(as_tuple=True)
    weight = weights[row, position]
    total = weight.sum() if divisor is None else torch.tensor(divisor, device=noised.device)
    return WeighedBatch(clean, noised, row, position, clean.ids[row, position], weight, total, mask)


class WeighedLoss:
    """sum_n weight_n CE_n over the gathered positions, plus the divisor times `align_weight` times a distance from the base.

    `teacher_share` of a target is what the base expects, where the base reads all that the denoiser does: up to the closing EOS, and with
    nothing but masks from the position on. The distance is taken on the clean text before such masks, and on other examples' prompts: half
    of it is the mean over prompts, half that over answers.
    """

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._teacher: Teacher | None = None

    def __call__(self, model: Any, batch: WeighedBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss `[]`, differentiable, and what is worth noting."""
        head, config = model.head, self._setting.config
        if not (config.teacher_share or config.align_weight):
            return self._loss(head, batch, model.hidden(batch.ids, None, config.grad_checkpointing, batch.mask), None), {}
        if self._teacher is None:
            self._teacher = Teacher(model)
        base = self._teacher.read(batch.clean.ids)
        with self._teacher.listening() as heard:
            hidden = model.hidden(batch.ids, None, config.grad_checkpointing, batch.mask)
        taught = self._taught(batch, base) if config.teacher_share else None
        loss = self._loss(head, batch, hidden, taught)
        if not config.align_weight:
            return loss, {}
        read = self._teacher.reading(hidden, heard)
        far = sum(distance(read, base, rows) for rows in self._compared(batch)) / 2
        return loss + config.align_weight * batch.divisor * far, {"distance": far.detach()}

    def _loss(self, head: Any, batch: WeighedBatch, hidden: Tensor, taught: Taught | None) -> Tensor:
        rows = hidden[batch.row, head.row_of(batch.position)]
        smoothing, parameters = self._setting.config.label_smoothing, self._setting.head_parameters
        return chunked_cross_entropy(head.logits, rows, batch.target, batch.weight, smoothing, parameters, taught)

    def _taught(self, batch: WeighedBatch, base: Reading) -> Taught:
        # The base knows nothing of what stands behind a position, and it would go on where the example ends.
        is_last = (batch.position > self._last_seen(batch)[batch.row].clamp(min=0)) & (batch.position < batch.clean.first_eos[batch.row])
        rows = base.hidden[batch.row, (batch.position - 1).clamp(min=0)]
        return Taught(rows, self._teacher.expected, is_last * self._setting.config.teacher_share)

    def _compared(self, batch: WeighedBatch) -> tuple[Tensor, Tensor]:
        """Return `[B, T]` each: the rows of clean text up to the closing EOS that a decode from left to right has read; else the prompt's.

        First those of prompts alone, then those that an answer's tokens are predicted from: they are few and stand next to the masks, so
        that in one mean with the prompts they would hardly count.
        """
        columns = torch.arange(batch.ids.shape[1], device=batch.ids.device)[None]
        damaged = torch.where(batch.ids != batch.clean.ids, columns, batch.ids.shape[1]).amin(1)
        # Where something is seen behind the damage, rows of the answer restore it or keep it as it is, for which they must look ahead.
        prompt = batch.clean.answer_start - int(self._setting.config.predicts_next_token)
        end = torch.where(self._last_seen(batch) > damaged, prompt, damaged)
        is_compared = columns < torch.minimum(end, batch.clean.first_eos)[:, None]
        is_prompt = columns < prompt[:, None]
        return is_compared & is_prompt, is_compared & ~is_prompt

    def _last_seen(self, batch: WeighedBatch) -> Tensor:
        """Return `[B]`: the last position that is not masked, -1 where all are."""
        columns = torch.arange(batch.ids.shape[1], device=batch.ids.device)[None]
        return torch.where(batch.ids != self._setting.mask_id, columns, -1).amax(1)
