"""A model made of whole-number hashes: exact in any batch, sensitive to every token it may see, and easy to repeat in plain Python."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch

from lad_engine.contracts import Canvas, TokenChoice
from lad_engine.kernels.choose_token.reference import choose_token
from lad_engine.kernels.random.reference import uniform
from lad_engine.kernels.renoise.reference import renoise
from lad_engine.kernels.update.reference import update

PRIME = 1009
SPREAD = 6.0
VOCABULARY = 24
MASK, EOS = 3, 5
OPS = SimpleNamespace(uniform=uniform, renoise=renoise, choose_token=choose_token, update=update)


class StubModel:
    """Implements contracts.Denoisable: the scores of a position follow from it, its neighbours and a checksum of the canvas.

    reach: which of (own token, left, right, position, canvas) count; weights 0 switch one off, and only the position converges.
    """

    def __init__(self, reach: tuple[int, int, int, int, int] = (31, 17, 13, 7, 11)) -> None:
        self.reach, self.device = reach, "cpu"

    def read_rows(self, ids, positions, lengths, unread=None):
        T = ids.shape[1]
        length = torch.as_tensor(lengths, device=ids.device)[:, None]
        column = torch.arange(T, device=ids.device)
        checksum = (ids * (column % 7 + 1) * (column < length)).sum(1, keepdim=True) % PRIME
        left = ids.gather(1, (positions - 1).clamp(min=0))
        right = ids.gather(1, torch.minimum(positions + 1, length - 1))
        return torch.stack([ids.gather(1, positions), left, right, positions, checksum.expand_as(positions)], dim=2)

    def choose(self, rows, rule, uniforms, unconditional=None, counts=None, guided=None, lowered=None):
        B, R, _ = rows.shape
        logits = self.logits(rows)
        if unconditional is not None:
            base = self.logits(unconditional)
            if guided is not None:
                # Nobody may look at the other sequences' unconditional rows.
                base = torch.where(torch.tensor(guided, device=rows.device)[:, None, None], base, torch.nan)
            scale = rule.cfg_scale[:, None, None]
            logits = torch.where(scale > 0, base + (scale + 1) * (logits - base), logits)
        if lowered is not None:
            ids, by = (part[:, None].expand(B, R, -1) for part in (lowered.ids, lowered.by))
            logits = logits.scatter(2, ids, logits.gather(2, ids) - by)

        def per_row(table):
            return table.repeat_interleave(R, dim=0, output_size=B * R)

        token, confidence = choose_token(
            logits.flatten(0, 1),
            uniforms.flatten(),
            *(per_row(table) for table in (rule.temperature, rule.top_k, rule.top_p, rule.drop_crossing, rule.full_confidence)),
            rule.bias_ids,
            per_row(rule.bias_values),
            max_top_k=rule.max_top_k,
            samples_all=rule.samples_all,
        )
        if counts is None:
            return TokenChoice(token.view(B, R), confidence.view(B, R))
        # Nobody may look at the others: what stands there is as wrong as can be.
        is_read = torch.arange(R, device=rows.device) < torch.tensor(counts, device=rows.device)[:, None]
        return TokenChoice(torch.where(is_read, token.view(B, R), -9), torch.where(is_read, confidence.view(B, R), torch.nan))

    def logits(self, rows):
        key = sum(rows[..., i] * weight for i, weight in enumerate(self.reach))
        token = torch.arange(VOCABULARY, device=rows.device)
        # Squared: with a linear hash two positions could have the same scores up to a constant, and a tie in exact arithmetic only.
        return (((key[..., None] + token * 101) ** 2 * 7919 % PRIME).double() * SPREAD / PRIME).float()

    def plain_logits(self, ids: list[int], position: int) -> list[float]:
        """The same scores for one position of one canvas, number by number."""
        checksum = sum(token * (i % 7 + 1) for i, token in enumerate(ids)) % PRIME
        facts = (ids[position], ids[max(position - 1, 0)], ids[min(position + 1, len(ids) - 1)], position, checksum)
        key = sum(fact * weight for fact, weight in zip(facts, self.reach, strict=True))
        return [float(np.float32((key + token * 101) ** 2 * 7919 % PRIME * SPREAD / PRIME)) for token in range(VOCABULARY)]


class OracleModel(StubModel):
    """Knows the answer: scores `truth[position]` far above everything else."""

    def __init__(self, truth: list[int]) -> None:
        super().__init__()
        self.truth = truth

    def logits(self, rows):
        truth = torch.tensor(self.truth)[rows[..., 3]]
        return super().logits(rows) + 50.0 * torch.nn.functional.one_hot(truth, VOCABULARY)


def canvas(prompt: int = 4, answer: int = 12, draft: list[int] | None = None, fixed: tuple[int, ...] = ()) -> Canvas:
    """A prompt of small ids, then an answer of MASKs or of `draft`; `fixed` answer positions stay."""
    ids = np.array([7 + i % 5 for i in range(prompt)] + (draft or [MASK] * answer), np.int64)
    is_open = np.arange(len(ids)) >= prompt
    is_open[[prompt + i for i in fixed]] = False
    return Canvas(ids, is_open, prompt)
