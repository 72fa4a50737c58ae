"""Final norm, LM head and token choice for the rows that are read, and the only place that knows the one-position shift."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..contracts import ModelFacts, TokenChoice, TokenRule
from .adapter_rows import AdapterRows, spanning
from .projection import Projection

# A sequence is read, and logits exist outside an op, this many rows at a time; with fewer the head weight would be read more often than
# its GEMM takes.
ROWS_PER_CHUNK = 128


class Head(nn.Module):
    """Turns hidden rows into logits or chosen tokens.

    `predicts_next_token` is a fact of the checkpoint or adapter: row j-1 predicts position j (DiffuLLaMA) instead of row j (LAD).
    `adapter_rows` is the transformer's.
    """

    adapter_rows: AdapterRows | None = None

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
        return self.projection(self.normed(rows), self.ops.lora_linear).float()

    def normed(self, rows: Tensor) -> Tensor:
        """Apply the final norm to rows `[N, D]`."""
        return self.ops.add_rmsnorm(rows, None, self.norm, self.facts.norm_eps)[0]

    def choose(
        self,
        rows: Tensor,
        rule: TokenRule,
        uniforms: Tensor,
        unconditional: Tensor | None = None,
        counts: Sequence[int] | None = None,
        guided: Sequence[bool] | None = None,
    ) -> TokenChoice:
        """Choose a token for the first counts[b] rows of each sequence of `[B, R, D]`, or for all of them at once where counts is None.

        l = l_u + (w + 1)(l_c - l_u) with w = rule.cfg_scale where `unconditional` `[B, R, D]` is given (LLaDA, equation 16).

        With counts, a sequence's GEMMs have the shapes, and its rows the bits, they have without batch-mates; `guided` then names the
        sequences whose unconditional rows are read, None all. Without counts nothing depends on host data, and a row's bits depend on
        its batch-mates as far as the backend of `lm_head` lets them.
        Returns:
            TokenChoice of `[B, R]`, zeros beyond a sequence's count.
        """
        B, R, _ = rows.shape
        if counts is None and self.adapter_rows is not None and unconditional is not None:
            # Guided rows are read in chunks, which must not mix sequences of different adapters.
            counts = (R,) * B
        if counts is None:
            tables = _Tables.of(rule, lambda table: table[:, None].expand(B, R, *table.shape[1:]).flatten(0, 1))
            base = None if unconditional is None else unconditional.flatten(0, 1)
            with spanning(self.adapter_rows, 0, B):
                token, confidence = self._choose_rows(rows.flatten(0, 1), base, uniforms.flatten(), tables, rule)
            return TokenChoice(token.view(B, R), confidence.view(B, R))
        token = torch.zeros(B, R, dtype=torch.int64, device=rows.device)
        confidence = torch.zeros(B, R, dtype=torch.float32, device=rows.device)
        for b, rows_read in enumerate(counts):
            is_guided = unconditional is not None and (guided is None or guided[b])
            for part in _chunks(rows_read):
                tables = _Tables.of(rule, lambda table, b=b, n=part.stop - part.start: table[b].expand(n, *table.shape[1:]))
                base = unconditional[b, part] if is_guided else None
                with spanning(self.adapter_rows, b, b + 1):
                    token[b, part], confidence[b, part] = self._choose_rows(rows[b, part], base, uniforms[b, part], tables, rule)
        return TokenChoice(token, confidence)

    def _choose_rows(
        self, rows: Tensor, unconditional: Tensor | None, uniforms: Tensor, tables: _Tables, rule: TokenRule
    ) -> tuple[Tensor, Tensor]:
        """Return (token, confidence) `[N]` of `rows` `[N, D]`: by one op, or over logits where guidance or an adapter needs them."""
        static = {"max_top_k": rule.max_top_k, "samples_all": rule.samples_all}
        if unconditional is None and self._has_plain_weight(rows.dtype):
            columns = (*tables.columns, rule.bias_ids, tables.bias_values)
            return self.ops.lm_head(self.normed(rows), self.projection.weight, uniforms, *columns, **static)
        token = torch.empty(len(rows), dtype=torch.int64, device=rows.device)
        confidence = torch.empty(len(rows), dtype=torch.float32, device=rows.device)
        for part in _chunks(len(rows)):
            logits = self.logits(rows[part])
            if unconditional is not None:
                base = self.logits(unconditional[part])
                scale = tables.cfg_scale[part, None]
                # Selected, not scaled by zero: an unguided row keeps the bits it has alone.
                logits = torch.where(scale > 0, base + (scale + 1.0) * (logits - base), logits)
            columns = (*(column[part] for column in tables.columns), rule.bias_ids, tables.bias_values[part])
            token[part], confidence[part] = self.ops.choose_token(logits, uniforms[part], *columns, **static)
        return token, confidence

    def _has_plain_weight(self, dtype: torch.dtype) -> bool:
        """Whether logits are rows times one matrix: no adapter beside it, no bias, no quantised weight."""
        projection = self.projection
        return projection.is_plain and projection.bias is None and projection.weight.dtype == dtype


class _Tables(NamedTuple):
    """The tables of a TokenRule with one entry per row; `columns` in the order `choose_token` takes them."""

    columns: tuple[Tensor, ...]
    bias_values: Tensor
    cfg_scale: Tensor

    @classmethod
    def of(cls, rule: TokenRule, per_row: Callable[[Tensor], Tensor]) -> _Tables:
        columns = (rule.temperature, rule.top_k, rule.top_p, rule.drop_crossing, rule.full_confidence)
        return cls(tuple(map(per_row, columns)), per_row(rule.bias_values), per_row(rule.cfg_scale))


def _chunks(count: int) -> Iterator[slice]:
    for start in range(0, count, ROWS_PER_CHUNK):
        yield slice(start, min(start + ROWS_PER_CHUNK, count))
