"""The model as the denoisers see it: rows of a canvas, and the choice of tokens from them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..contracts import Lowered, TokenChoice, TokenRule
from .adapter_rows import spanning
from .head import Head
from .transformer import Transformer


class LanguageModel:
    """A transformer read as a denoiser (implements `contracts.Denoisable`).

    batch_invariant True forwards each sequence at its own length, so that its numbers do not depend on its batch-mates; False forwards
    the padded batch at once and ignores the padding in attention, and so does True where rows_stand_alone: the ops then give every row
    of a padded batch the bits it has alone (`ops.rows_stand_alone`). Sequences that nobody reads are left out, but not of a padded batch
    beside stacked adapters.
    """

    def __init__(self, transformer: Transformer, batch_invariant: bool = True, rows_stand_alone: bool = False) -> None:
        self.transformer, self.batch_invariant, self.rows_stand_alone = transformer, batch_invariant, rows_stand_alone

    @property
    def head(self) -> Head:
        return self.transformer.head

    def rows_moved(self, rows: Tensor) -> None:
        """Say that row n of the batch from now on is what row rows[n] was (`[N]` int64 on the device)."""
        if self.transformer.adapter_rows is not None:
            self.transformer.adapter_rows.move(rows)

    def hidden(self, ids: Tensor, lengths: Tensor | None = None, recomputes: bool = False, mask: Tensor | None = None) -> Tensor:
        """Forward ids `[B, T]` bidirectionally to `[B, T, D]`; keys at or beyond `lengths` `[B]` are ignored.

        mask: `[T, T]` bool, which key each query may see instead (training with an annealed mask).
        """
        return self.transformer(ids, lengths, recomputes=recomputes, mask=mask)

    def read_rows(
        self, ids: Tensor, positions: Tensor, lengths: tuple[int, ...] | Tensor, unread: tuple[bool, ...] | None = None
    ) -> Tensor:
        """Return `[B, R, D]`: the hidden rows that predict `positions` `[B, R]` of `ids` `[B, T]`.

        lengths: each sequence's length at this step; positions beyond it are padding and read the last row. Host integers, or `[B]`
            int64 on the device: then the whole of `ids` is forwarded at once and nothing is read on the host.
        unread: sequences whose rows nobody looks at, zeros where they are left out; needs host lengths.
        """
        rows = self.head.row_of(positions)
        if isinstance(lengths, Tensor):
            hidden = self.hidden(ids, lengths)
            return hidden.gather(1, rows[..., None].expand(-1, -1, hidden.shape[-1]))
        if not self.batch_invariant or self.rows_stand_alone:
            if unread is not None and any(unread) and self.transformer.adapter_rows is None:
                return self._read_live(ids, positions, lengths, unread)
            on_device = torch.tensor(lengths, device=ids.device)
            longest = max(lengths)
            same = min(lengths) == longest
            hidden = self.hidden(ids[:, :longest], None if same else on_device)
            rows = torch.minimum(rows, on_device[:, None] - 1)
            return hidden.gather(1, rows[..., None].expand(-1, -1, hidden.shape[-1]))
        read = self.head.norm.new_zeros(*positions.shape, self.transformer.facts.width)
        for b, length in enumerate(lengths):
            if unread is None or not unread[b]:
                with spanning(self.transformer.adapter_rows, b, b + 1):
                    read[b] = self.hidden(ids[b : b + 1, :length])[0][rows[b].clamp(max=length - 1)]
        return read

    def _read_live(self, ids: Tensor, positions: Tensor, lengths: tuple[int, ...], unread: tuple[bool, ...]) -> Tensor:
        """Return `read_rows` of the sequences that somebody reads, and zeros for the others."""
        read = self.head.norm.new_zeros(*positions.shape, self.transformer.facts.width)
        live = [b for b, rests in enumerate(unread) if not rests]
        if live:
            read[live] = self.read_rows(ids[live], positions[live], tuple(lengths[b] for b in live))
        return read

    def choose(
        self,
        rows: Tensor,
        rule: TokenRule,
        uniforms: Tensor,
        unconditional: Tensor | None = None,
        counts: tuple[int, ...] | None = None,
        guided: tuple[bool, ...] | None = None,
        certainty: Tensor | None = None,
        lowered: Lowered | None = None,
    ) -> TokenChoice:
        """Choose tokens for `rows` `[B, R, D]`; see `Head.choose`.

        Where batches need not be invariant, sequences of similar counts are read together, which costs one GEMM instead of B.
        """
        if counts is not None and not self.batch_invariant and 0 < len(counts) * max(counts) <= 2 * sum(counts):
            R, width = rows.shape[1], max(counts)
            base = None if unconditional is None else unconditional[:, :width]
            read = self.head.choose(rows[:, :width], rule, uniforms[:, :width], base, certainty=certainty, lowered=lowered)
            parts = (read.token, read.confidence, read.certainty)
            return TokenChoice(*(None if part is None else nn.functional.pad(part, (0, R - width)) for part in parts))
        return self.head.choose(rows, rule, uniforms, unconditional, counts, guided, certainty, lowered)
