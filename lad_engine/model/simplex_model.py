"""A transformer read as a simplex denoiser (TESS 2): mean embeddings in, chosen tokens and the next mean embeddings out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..contracts import Renoise, SoftInput, TokenChoice, TokenRule
from .adapter_rows import spanning
from .language_model import LanguageModel

# Rows whose logits and probabilities exist at once; each reads head and embedding once more. The wider chunk is a captured step's.
ROWS_PER_CHUNK, ROWS_PER_STATIC_CHUNK = 128, 512
# The size of a simplex's corners, the reference's `simplex_value`.
SIMPLEX_VALUE = 5.0
# Below it, a level of noise divides nothing anybody reads.
LEAST_SIGMA = 1e-6


class SimplexModel:
    """Implements `contracts.SimplexDenoisable` over a LanguageModel; `value` is k, the size of the simplex's corners."""

    def __init__(self, model: LanguageModel) -> None:
        self._model, self.transformer = model, model.transformer
        extra = model.transformer.facts.extra
        self.value = float(extra.get("simplex_value", SIMPLEX_VALUE))
        self.mixes = bool(extra.get("self_condition", True))

    def blank(self, rows: int, columns: int, device: torch.device | str) -> Tensor:
        """Return `[B, R, D]` zeros that hold mean embeddings."""
        embed = self.transformer.embed
        return torch.zeros(rows, columns, embed.shape[1], dtype=embed.dtype, device=device)

    def read_rows(
        self,
        ids: Tensor,
        soft: SoftInput,
        positions: Tensor,
        lengths: tuple[int, ...] | Tensor,
        unread: tuple[bool, ...] | None = None,
    ) -> Tensor:
        """Forward the canvases with mean embeddings in place of their soft positions; see `SimplexDenoisable`."""
        x = nn.functional.embedding(ids, self.transformer.embed)  # [B, T, D]
        mean = soft.embedding
        if self.transformer.time_embed is not None:
            mean = mean + (soft.time[:, None].to(mean.dtype) * self.transformer.time_embed)[:, None]
        placed = mean.gather(1, soft.column[..., None].expand(-1, -1, mean.shape[-1]))
        x = torch.where(soft.is_soft[..., None], placed, x)
        rows = self._model.head.row_of(positions)
        if isinstance(lengths, Tensor):
            return _gathered(self.transformer(ids, lengths, embedded=x), rows)
        if not self._model.batch_invariant:
            on_device, longest = torch.tensor(lengths, device=ids.device), max(lengths)
            same = min(lengths) == longest
            hidden = self.transformer(ids[:, :longest], None if same else on_device, embedded=x[:, :longest])
            return _gathered(hidden, torch.minimum(rows, on_device[:, None] - 1))
        read = x.new_zeros(*positions.shape, x.shape[-1])
        for b, length in enumerate(lengths):
            if unread is None or not unread[b]:
                with spanning(self.transformer.adapter_rows, b, b + 1):
                    hidden = self.transformer(ids[b : b + 1, :length], embedded=x[b : b + 1, :length])
                read[b] = hidden[0][rows[b].clamp(max=length - 1)]
        return read

    def begin(self, renoise: Renoise, counts: Sequence[int] | None = None) -> Tensor:
        """Return `[B, R, D]`: mean embeddings of noise alone, averaged with the uniform prediction nobody has made yet."""
        B, R = renoise.tokens.shape
        out = self.blank(B, R, renoise.tokens.device).flatten(0, 1)
        flat = _Flat(renoise)
        uniform = out.new_zeros(1, self.transformer.facts.vocab_size)
        for part in _parts(B, R, _by_sequence(renoise, counts), is_whole=False):
            out[part] = self._embed(flat, part, flat.tokens[part], uniform.expand(part.stop - part.start, -1))
        return out.view(B, R, -1)

    def choose(
        self,
        rows: Tensor,
        positions: Tensor,
        rule: TokenRule,
        uniforms: Tensor,
        renoise: Renoise,
        counts: Sequence[int] | None = None,
        guide: Any = None,
    ) -> tuple[TokenChoice, Tensor]:
        """Choose a token per row, renoise it and embed what the next pass reads; see `SimplexDenoisable`."""
        B, R, _ = rows.shape
        ops = self.transformer.ops
        token = torch.zeros(B * R, dtype=torch.int64, device=rows.device)
        confidence = torch.zeros(B * R, dtype=torch.float32, device=rows.device)
        out = self.blank(B, R, rows.device).flatten(0, 1)
        flat, flat_rows, places = _Flat(renoise), rows.flatten(0, 1), positions.flatten()
        columns = [_per_row(t, R) for t in (rule.temperature, rule.top_k, rule.top_p, rule.drop_crossing, rule.full_confidence)]
        bias = _per_row(rule.bias_values, R)
        counts = _by_sequence(renoise, counts, guide is not None or self.transformer.adapter_rows is not None)
        for part in _parts(B, R, counts, is_whole=guide is not None):
            b = part.start // R
            with spanning(self.transformer.adapter_rows, b, b + 1):
                logits = self.logits(flat_rows[part], places[part])
            if guide is not None:
                logits = guide(b, logits)
            chosen = ops.choose_token(
                logits, uniforms.flatten()[part], *(column[part] for column in columns), rule.bias_ids, bias[part],
                max_top_k=rule.max_top_k, samples_all=rule.samples_all,
            )  # fmt: skip
            token[part], confidence[part] = chosen
            if renoise.turn is not None and flat.keeps(part):
                self._turn_noise_(flat, part, renoise, logits)
            out[part] = self._embed(flat, part, token[part], logits)
        return TokenChoice(token.view(B, R), confidence.view(B, R)), out.view(B, R, -1)

    def logits(self, rows: Tensor, positions: Tensor) -> Tensor:
        """Map hidden rows `[N, D]` to logits `[N, V]` of `positions` `[N]`, in the dtype of the weights."""
        head = self._model.head
        logits = head.projection(head.normed(rows), self.transformer.ops.lora_linear)
        # No row predicts position 0 of a shifted model: its logits are all equal.
        return logits.masked_fill((positions == 0)[:, None], 0.0) if head.predicts_next_token else logits

    def _embed(self, flat: _Flat, part: slice, tokens: Tensor, logits: Tensor) -> Tensor:
        return self.transformer.ops.soft_embedding(
            self.transformer.embed, tokens, 2.0 * self.value * flat.signal[part], self.value * flat.sigma[part],
            flat.seeds[part], flat.positions[part], flat.steps[part], flat.purpose,
            logits if self.mixes else None, flat.noise[part] if flat.keeps(part) else None,
        )  # fmt: skip

    def _turn_noise_(self, flat: _Flat, part: slice, renoise: Renoise, logits: Tensor) -> None:
        """Replace the noise z of this pass by what its prediction leaves of it: (S / k - sqrt(abar) (2 p - 1)) / sqrt(1 - abar)."""
        R = renoise.tokens.shape[1]
        signal, sigma, own_signal, own_sigma = (_per_row(table, R)[part, None] for table in renoise.turn)
        simplex = own_sigma * flat.noise[part] - own_signal
        simplex.scatter_add_(1, flat.tokens[part, None].clamp(min=0), 2.0 * own_signal)
        predicted = torch.softmax(logits.float(), 1).mul_(2.0).sub_(1.0)
        flat.noise[part] = simplex.sub_(predicted.mul_(signal)).div_(sigma.clamp(min=LEAST_SIGMA))


class _Flat:
    """The tables of a Renoise with one entry per row of all sequences."""

    def __init__(self, renoise: Renoise) -> None:
        B, R = renoise.tokens.shape
        self.tokens, self.purpose = renoise.tokens.flatten(), renoise.purpose
        self.signal, self.sigma, self.seeds, self.steps = (
            _per_row(table, R) for table in (renoise.signal, renoise.sigma, renoise.seeds, renoise.steps)
        )
        self.positions = renoise.columns.expand(B, R).flatten()
        self.noise = None if renoise.noise is None else renoise.noise.view(B * R, -1)
        self._keeps, self._columns = renoise.keeps, R

    def keeps(self, part: slice) -> bool:
        """Whether these rows, all of one sequence where some sequence's noise is kept, have theirs kept."""
        return self.noise is not None and self._keeps[part.start // self._columns]


def _by_sequence(renoise: Renoise, counts: Sequence[int] | None, is_needed: bool = False) -> Sequence[int] | None:
    """Return how many rows of each sequence to take by themselves, None where all may be taken together."""
    B, R = renoise.tokens.shape
    return (R,) * B if counts is None and (is_needed or renoise.noise is not None) else counts


def _per_row(table: Tensor, R: int) -> Tensor:
    return table[:, None].expand(-1, R, *table.shape[1:]).flatten(0, 1)


def _parts(B: int, R: int, counts: Sequence[int] | None, is_whole: bool) -> Iterator[slice]:
    """Yield chunks of the flat rows: of each sequence's first counts[b], or of all where counts is None; is_whole: never cut one."""
    spans = [(0, B * R)] if counts is None else [(b * R, b * R + count) for b, count in enumerate(counts)]
    size = ROWS_PER_STATIC_CHUNK if counts is None else ROWS_PER_CHUNK
    for start, stop in spans:
        for first in range(start, stop, max(stop - start, 1) if is_whole else size):
            yield slice(first, stop if is_whole else min(first + size, stop))


def _gathered(hidden: Tensor, rows: Tensor) -> Tensor:
    return hidden.gather(1, rows[..., None].expand(-1, -1, hidden.shape[-1]))
