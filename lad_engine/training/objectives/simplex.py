"""TESS 2's objective: recover tokens from a noised simplex, half the time with the model's own first guess averaged in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...kernels.random.reference import CORRUPT_LEVEL, CORRUPT_SIMPLEX
from ...model.simplex_model import SIMPLEX_VALUE
from ...schedules.gaussian import TRAINING_STEPS, signal_share
from ...schedules.spans import draw_spans
from ..losses import ROWS_PER_CHUNK, chunked_cross_entropy
from .objective import CleanBatch, Setting

VALIDATION_LEVELS = (20, 50, 80)


@dataclass(frozen=True)
class SimplexBatch:
    """Clean ids `[B, T]`, the rows and positions that are noised, their tokens and weights, and the weights' sum.

    level: `[B]` int64, t of 5000. seeds: `[B]`, draw: `[]`: they name the noise. is_conditioned: a first guess is made and averaged in.
    """

    ids: Tensor
    row: Tensor
    position: Tensor
    target: Tensor
    weight: Tensor
    divisor: Tensor
    level: Tensor
    seeds: Tensor
    draw: Tensor
    is_conditioned: bool


class SimplexObjective:
    """Cross-entropy on the noised positions; the others keep clean embeddings and get no time.

    t is uniform in {0 .. 4999}, one per sequence; S = sqrt(abar_t) (+-k) + sqrt(1 - abar_t) k z. With probability 1/2 (one coin per
    micro-batch) a pass without gradient at t + 1, with the same z, makes the previous prediction; else that is uniform. Noised are the
    answers, EOS padding included with weight eos_pad_weight (the reference's is 1), or by `spans` = "ul2" the batch's own draw of T5
    spans and continuations over the whole text.
    """

    def __init__(self, setting: Setting) -> None:
        self._setting = setting

    def draw(self, clean: CleanBatch) -> SimplexBatch:
        """Draw level, coin and spans, and pick the positions that are noised."""
        config, ops = self._setting.config, self._setting.ops
        zero = torch.zeros(1, dtype=torch.int64, device=clean.ids.device)
        level = (ops.uniform(clean.seeds, zero, clean.draw, CORRUPT_LEVEL)[:, 0] * TRAINING_STEPS).long()
        coin = ops.uniform(zero + config.seed, zero + 1, clean.draw, CORRUPT_LEVEL)
        return self._batch(clean, self._noised(clean), level, bool(coin < 0.5))

    def loss(self, model: Any, batch: SimplexBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted sum of cross-entropies of one micro-batch, and the mean level of its noise."""
        rows = self._rows(model, batch)
        config = self._setting.config
        total = chunked_cross_entropy(
            model.head.logits, rows, batch.target, batch.weight, config.label_smoothing, self._setting.head_parameters
        )
        return total, {"level": batch.level.float().mean() / TRAINING_STEPS}

    @torch.no_grad()
    def validate(self, model: Any, batches: Any, device: torch.device) -> dict[str, float]:
        """Return loss and recovered share (argmax equals the original) over the answers' tokens at fixed levels of noise, the same always.

        Keys: val_loss (mean over levels), val_loss_noise_<percent>, val_recovered_noise_<percent>.
        """
        out: dict[str, float] = {}
        for percent in VALIDATION_LEVELS:
            totals = torch.zeros(3, dtype=torch.float64)
            for one in batches:
                clean = CleanBatch(
                    one.ids.to(device), one.answer_start.to(device), one.first_eos.to(device), one.keys.to(device),
                    torch.zeros((), dtype=torch.int64, device=device), 0,
                )  # fmt: skip
                level = torch.full_like(clean.seeds, TRAINING_STEPS * percent // 100)
                batch = self._batch(clean, self._answers(clean), level, is_conditioned=True)
                counted = batch.position <= clean.first_eos[batch.row]
                rows, targets = self._rows(model, batch)[counted], batch.target[counted]
                for part in _chunks(len(targets)):
                    logits = model.head.logits(rows[part])
                    totals[0] += torch.nn.functional.cross_entropy(logits, targets[part], reduction="sum").item()
                    totals[1] += (logits.argmax(1) == targets[part]).sum().item()
                totals[2] += len(targets)
            count = max(float(totals[2]), 1.0)
            out[f"val_loss_noise_{percent}"], out[f"val_recovered_noise_{percent}"] = float(totals[0]) / count, float(totals[1]) / count
        out["val_loss"] = sum(out[f"val_loss_noise_{percent}"] for percent in VALIDATION_LEVELS) / len(VALIDATION_LEVELS)
        return out

    def _noised(self, clean: CleanBatch) -> Tensor:
        """Return `[B, T]` bool, the positions that are noised."""
        config = self._setting.config
        if config.spans != "ul2":
            return self._answers(clean)
        generator = np.random.Generator(np.random.Philox(key=[config.seed, int(clean.draw)]))
        lengths = (clean.first_eos + 1).clamp(max=clean.ids.shape[1]).cpu().numpy()
        return torch.from_numpy(draw_spans(lengths, clean.ids.shape[1], generator)).to(clean.ids.device)

    def _answers(self, clean: CleanBatch) -> Tensor:
        return torch.arange(clean.ids.shape[1], device=clean.ids.device)[None] >= clean.answer_start[:, None]

    def _batch(self, clean: CleanBatch, is_noised: Tensor, level: Tensor, is_conditioned: bool) -> SimplexBatch:
        config = self._setting.config
        if config.predicts_next_token:
            # Nothing stands before position 0, so no row predicts it.
            is_noised[:, 0] = False
        row, position = is_noised.nonzero(as_tuple=True)
        weight = torch.where(position > clean.first_eos[row], config.eos_pad_weight, 1.0)
        target = clean.ids[row, position]
        return SimplexBatch(
            clean.ids, row, position, target, weight, weight.sum(), level, clean.seeds, clean.draw, is_conditioned
        )  # fmt: skip

    def _rows(self, model: Any, batch: SimplexBatch) -> Tensor:
        """Return the hidden rows `[N, D]` that predict the noised positions."""
        with torch.no_grad():
            soft = None
            if batch.is_conditioned:
                above = (batch.level + 1).clamp(max=TRAINING_STEPS - 1)
                guess = self._forward(model, batch, above, self._soft(model, batch, above, None))
                soft = self._soft(model, batch, batch.level, guess)
            else:
                soft = self._soft(model, batch, batch.level, None)
        return self._forward(model, batch, batch.level, soft)

    def _soft(self, model: Any, batch: SimplexBatch, level: Tensor, guess: Tensor | None) -> Tensor:
        """Return the mean embeddings `[N, D]` of the noised tokens, averaged with the prediction of `guess` `[N, D]`, or a uniform one."""
        table, ops = model.transformer.embed, self._setting.ops
        share = torch.as_tensor(signal_share(level.cpu().numpy() / TRAINING_STEPS), device=table.device)[batch.row]
        shift, spread = (2 * SIMPLEX_VALUE * share.sqrt()).float(), (SIMPLEX_VALUE * (1 - share).sqrt()).float()
        out = table.new_empty(len(batch.row), table.shape[1])
        for part in _chunks(len(batch.row)):
            row = batch.row[part]
            steps = batch.draw.expand(len(row))
            previous = table.new_zeros(1, table.shape[0]).expand(len(row), -1) if guess is None else model.head.logits(guess[part])
            noised = (batch.target[part], shift[part], spread[part])
            out[part] = ops.soft_embedding(
                table, *noised, batch.seeds[row], batch.position[part], steps, CORRUPT_SIMPLEX, previous
            )  # fmt: skip
        return out

    def _forward(self, model: Any, batch: SimplexBatch, level: Tensor, soft: Tensor) -> Tensor:
        transformer = model.transformer
        time = (level.float() / TRAINING_STEPS)[batch.row, None] * transformer.norm("timestep_embed")
        x = torch.nn.functional.embedding(batch.ids, transformer.embed)
        x = x.index_put((batch.row, batch.position), soft + time.to(soft.dtype))
        hidden = transformer(batch.ids, embedded=x, recomputes=self._setting.config.grad_checkpointing)
        return hidden[batch.row, model.head.row_of(batch.position)]


def open_time_vector(transformer: Any) -> torch.nn.Parameter:
    """Return the time vector as a trainable fp32 parameter; a base without one begins with zeros."""
    own = transformer.norm("timestep_embed")
    transformer.time_embed = torch.nn.Parameter(own.detach().float().clone())
    return transformer.time_embed


def _chunks(count: int) -> list[slice]:
    return [slice(start, start + ROWS_PER_CHUNK) for start in range(0, count, ROWS_PER_CHUNK)]
