"""Final norm, LM head and token choice for the rows that are read, and the only place that knows the one-position shift."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..contracts import ModelFacts, TokenChoice, TokenRule
from .projection import Projection

# Logits exist for this many rows of a sequence at a time; fewer would read the whole head weight more often than its GEMM takes.
ROWS_PER_CHUNK = 128


class Head(nn.Module):
    """Turns hidden rows into logits or chosen tokens.

    `predicts_next_token` is a fact of the checkpoint or adapter: row j-1 predicts position j (DiffuLLaMA) instead of row j (LAD).
    """

    def __init__(
        self, facts: ModelFacts, ops: Any, tied_weight: nn.Parameter | None, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        super().__init__()
        self.facts, self.ops = facts, ops
        self.predicts_next_token = False
        self.norm = nn.Parameter(torch.empty(facts.width, dtype=dtype, device=device), requires_grad=False)
        rows = 0 if tied_weight is not None else facts.vocab_size
        self.projection = Projection(facts.width, {"lm_head": rows}, False, dtype, device)
        if tied_weight is not None:
            self.projection.weight = tied_weight
            self.projection.rows["lm_head"] = (0, facts.vocab_size)

    def row_of(self, positions: Tensor) -> Tensor:
        """Return the row that predicts each position; position 0 of a shifted model has none and reads row 0 (it stays fixed)."""
        return (positions - 1).clamp(min=0) if self.predicts_next_token else positions

    def logits(self, rows: Tensor) -> Tensor:
        """Map hidden rows `[N, D]` to fp32 logits `[N, V]`, final norm included."""
        normed, _ = self.ops.add_rmsnorm(rows, None, self.norm, self.facts.norm_eps)
        return self.projection(normed, self.ops.lora_linear).float()

    def choose(
        self, rows: Tensor, rule: TokenRule, uniforms: Tensor, unconditional: Tensor | None = None, counts: Sequence[int] | None = None
    ) -> TokenChoice:
        """Choose a token for the first counts[b] rows of each sequence of `[B, R, D]`, all R where counts is None.

        l = l_u + (w + 1)(l_c - l_u) with w = rule.cfg_scale where `unconditional` `[B, R, D]` is given (LLaDA, equation 16).
        Returns:
            TokenChoice of `[B, R]`, zeros beyond a sequence's count.
        """
        B, R, _ = rows.shape
        token = torch.zeros(B, R, dtype=torch.int64, device=rows.device)
        confidence = torch.zeros(B, R, dtype=torch.float32, device=rows.device)
        for b, rows_read in enumerate(counts if counts is not None else (R,) * B):
            # A sequence's chunks depend on its own rows alone, so every GEMM has the shape, and a row the bits, it has without batch-mates.
            for start in range(0, rows_read, ROWS_PER_CHUNK):
                part = slice(start, min(start + ROWS_PER_CHUNK, rows_read))
                count = part.stop - part.start
                logits = self.logits(rows[b, part])
                if unconditional is not None:
                    base = self.logits(unconditional[b, part])
                    scale = rule.cfg_scale[b]
                    # Selected, not scaled by zero: an unguided row keeps the bits it has alone.
                    logits = torch.where(scale > 0, base + (scale + 1.0) * (logits - base), logits)
                token[b, part], confidence[b, part] = self.ops.choose_token(
                    logits,
                    uniforms[b, part],
                    *(
                        table[b].expand(count)
                        for table in (rule.temperature, rule.top_k, rule.top_p, rule.drop_crossing, rule.full_confidence)
                    ),
                    rule.bias_ids,
                    rule.bias_values[b].expand(count, -1),
                    max_top_k=rule.max_top_k,
                    samples_all=rule.samples_all,
                )
        return TokenChoice(token, confidence)
