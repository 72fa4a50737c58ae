"""Masked diffusion (DiffuLLaMA, arXiv 2410.17891, section 3): restore masked tokens, weighed by 1/t, under an annealed causal mask."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...kernels.random.reference import ANNEAL
from .lad import WeighedBatch, WeighedLoss, weigh
from .objective import CleanBatch, Setting


class MaskedObjective:
    """loss = sum over masked positions of CE / t_b, divided by their number; t_b = 0.001 + 0.999 u per sequence.

    Every answer position is masked with probability t_b by itself (EOS padding included, with weight eos_pad_weight; the reference's
    is 1). Position 0 of a shifted model is never supervised. Over the first anneal_steps updates a query sees its own past and every
    other key with probability rho = min(1, (update + 1) / anneal_steps), one random matrix per draw for the whole batch.
    """

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._weighed = WeighedLoss(setting)

    def draw(self, clean: CleanBatch) -> WeighedBatch:
        """Mask the answers and weigh what is masked."""
        config, mask_id = self._setting.config, self._setting.mask_id
        lengths = torch.full_like(clean.answer_start, clean.ids.shape[1])
        noised, level = self._setting.ops.structured_noise(
            clean.ids, clean.answer_start, lengths, clean.seeds, clean.draw, mask_id, "mask_only"
        )
        columns = torch.arange(clean.ids.shape[1], device=clean.ids.device)[None]
        # A clean token may be the mask's own piece: what was hidden is what lies in the answer and reads as the mask.
        is_hidden = (noised == mask_id) & (columns >= clean.answer_start[:, None])
        if config.predicts_next_token:
            is_hidden[:, 0] = False
        pads = torch.where(columns > clean.first_eos[:, None], config.eos_pad_weight, 1.0)
        weights = is_hidden * pads / level[:, None]
        share = float((is_hidden * pads).sum())
        return weigh(clean, noised, weights, share, self._mask(clean))

    def loss(self, model: Any, batch: WeighedBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted sum of cross-entropies of one micro-batch, and the share of its positions that was masked."""
        loss, noted = self._weighed(model, batch)
        return loss, {"masked_share": batch.divisor / batch.ids.numel(), **noted}

    def _mask(self, clean: CleanBatch) -> Tensor | None:
        steps = self._setting.config.anneal_steps
        if clean.update + 1 >= steps:
            return None
        return annealed_mask(clean.ids.shape[1], (clean.update + 1) / steps, self._setting, clean.draw)


def annealed_mask(width: int, share: float, setting: Setting, draw: Tensor) -> Tensor:
    """Return `[T, T]` bool: causal, or drawn with probability `share`; keyed by the run's seed and the draw."""
    seed = torch.tensor([setting.config.seed], device=draw.device)
    drawn = setting.ops.uniform(seed, torch.arange(width * width, device=draw.device), draw, ANNEAL).view(width, width)
    return torch.ones(width, width, dtype=torch.bool, device=draw.device).tril() | (drawn < share)
