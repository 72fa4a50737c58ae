"""Final norm, LM head and token choice for the rows that are read, and the only place that knows the one-position shift."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..contracts import Lowered, ModelFacts, TokenChoice, TokenRule
from .adapter_rows import AdapterRows, spanning
from .certainty import certainty_of
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
        certainty: Tensor | None = None,
        lowered: Lowered | None = None,
    ) -> TokenChoice:
        """Choose a token for the first counts[b] rows of each sequence of `[B, R, D]`, or for all of them at once where counts is None.

        l = l_u + (w + 1)(l_c - l_u) with w = rule.cfg_scale where `unconditional` `[B, R, D]` is given (LLaDA, equation 16).

        With counts, a sequence's GEMMs have the shapes, and its rows the bits, they have without batch-mates; `guided` then names the
        sequences whose unconditional rows are read, None all. Without counts nothing depends on host data, and a row's bits depend on
        its batch-mates as far as the backend of `lm_head` lets them.
        certainty: `[B]` int64, see `certainty.certainty_of`; None asks for none. lowered: logits to lower, after guidance; with counts only
        those of the sequences it names.
        Returns:
            TokenChoice of `[B, R]`, zeros beyond a sequence's count.
        """
        B, R, _ = rows.shape
        if counts is None and self.adapter_rows is not None and unconditional is not None:
            # Guided rows are read in chunks, which must not mix sequences of different adapters.
            counts = (R,) * B
        if counts is None:
            tables = _Tables.of(rule, certainty, lowered, lambda table: table[:, None].expand(B, R, *table.shape[1:]).flatten(0, 1))
            base = None if unconditional is None else unconditional.flatten(0, 1)
            with spanning(self.adapter_rows, 0, B):
                chosen = self._choose_rows(rows.flatten(0, 1), base, uniforms.flatten(), tables, rule)
            return TokenChoice(*(None if part is None else part.view(B, R) for part in chosen))
        out = self._blank((B, R), rows.device, certainty is not None)
        for b, rows_read in enumerate(counts):
            is_guided = unconditional is not None and (guided is None or guided[b])
            own = lowered if lowered is not None and (lowered.rows is None or lowered.rows[b]) else None
            for part in _chunks(rows_read):
                size = part.stop - part.start
                tables = _Tables.of(rule, certainty, own, lambda table, b=b, n=size: table[b].expand(n, *table.shape[1:]))
                base = unconditional[b, part] if is_guided else None
                with spanning(self.adapter_rows, b, b + 1):
                    _put(out, (b, part), self._choose_rows(rows[b, part], base, uniforms[b, part], tables, rule))
        return TokenChoice(*out)

    def _blank(self, shape: tuple[int, ...], device: torch.device, has_certainty: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        zeros = torch.zeros(shape, dtype=torch.float32, device=device)
        return torch.zeros(shape, dtype=torch.int64, device=device), zeros, zeros.clone() if has_certainty else None

    def _choose_rows(
        self, rows: Tensor, unconditional: Tensor | None, uniforms: Tensor, tables: _Tables, rule: TokenRule
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Choose for `[N, D]` rows at once, with one entry of `tables` per row; logits exist ROWS_PER_CHUNK rows at a time."""
        static = {"max_top_k": rule.max_top_k, "samples_all": rule.samples_all}
        if unconditional is None and tables.certainty is None and tables.lowered is None and self._has_plain_weight(rows.dtype):
            columns = (*tables.columns, rule.bias_ids, tables.bias_values)
            return *self.ops.lm_head(self.normed(rows), self.projection.weight, uniforms, *columns, **static), None
        out = self._blank((len(rows),), rows.device, tables.certainty is not None)
        for part in _chunks(len(rows)):
            logits = self.logits(rows[part])
            if unconditional is not None:
                base = self.logits(unconditional[part])
                scale = tables.cfg_scale[part, None]
                # Selected, not scaled by zero: an unguided row keeps the bits it has alone.
                logits = torch.where(scale > 0, base + (scale + 1.0) * (logits - base), logits)
            if tables.lowered is not None:
                ids, by = (table[part] for table in tables.lowered)
                # Equal ids write equal numbers, so their order does not matter.
                logits.scatter_(1, ids, logits.gather(1, ids) - by)
            columns = (*(column[part] for column in tables.columns), rule.bias_ids, tables.bias_values[part])
            chosen = self.ops.choose_token(logits, uniforms[part], *columns, **static)
            sure = None if tables.certainty is None else certainty_of(logits, tables.certainty[part], *columns, max_top_k=rule.max_top_k)
            _put(out, part, (*chosen, sure))
        return out

    def _has_plain_weight(self, dtype: torch.dtype) -> bool:
        """Whether logits are rows times one matrix: no adapter beside it, no bias, no quantised weight."""
        projection = self.projection
        return projection.is_plain and projection.bias is None and projection.weight.dtype == dtype


class _Tables(NamedTuple):
    """The tables of a TokenRule with one entry per row; `columns` in the order `choose_token` takes them."""

    columns: tuple[Tensor, ...]
    bias_values: Tensor
    cfg_scale: Tensor
    certainty: Tensor | None
    lowered: tuple[Tensor, Tensor] | None

    @classmethod
    def of(cls, rule: TokenRule, certainty: Tensor | None, lowered: Lowered | None, per_row: Callable[[Tensor], Tensor]) -> _Tables:
        columns = (rule.temperature, rule.top_k, rule.top_p, rule.drop_crossing, rule.full_confidence)
        kinds = None if certainty is None else per_row(certainty)
        lower = None if lowered is None else (per_row(lowered.ids), per_row(lowered.by))
        return cls(tuple(map(per_row, columns)), per_row(rule.bias_values), per_row(rule.cfg_scale), kinds, lower)


def _put(out: Sequence[Tensor | None], where: Any, values: Sequence[Tensor | None]) -> None:
    for target, value in zip(out, values, strict=True):
        if target is not None:
            target[where] = value


def _chunks(count: int) -> Iterator[slice]:
    for start in range(0, count, ROWS_PER_CHUNK):
        yield slice(start, min(start + ROWS_PER_CHUNK, count))
