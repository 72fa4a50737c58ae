"""A base and its flow path as the L2D decoder sees them: the causal model, and velocities' rows at a time on the grid or at any other."""

from __future__ import annotations

import torch
from torch import Tensor

from ..contracts import TokenChoice, TokenRule
from ..errors import ConfigError
from .causal_model import CausalModel
from .kv_cache import KVCache
from .language_model import LanguageModel
from .latent_path import Conditions, LatentTransformer

# Grids of times that are kept for whoever asks next: those of an 8B model take 24 MB each, and a request may name any end time.
KEPT_GRIDS = 8


class LatentModel:
    """Implements `denoisers.latent_ode.LatentDecodable`; the flow table is computed once, and what a grid
    makes of the path is kept for a while.

    Raises:
        ConfigError: the weights are quantised, which the flow path shares and cannot read.
    """

    def __init__(self, model: LanguageModel) -> None:
        transformer = model.transformer
        if not isinstance(transformer, LatentTransformer):
            raise ConfigError(f"latent_ode: this {transformer.facts.family} base has no flow path, expected one. Load an L2D checkpoint.")
        if any(one.weight.dtype != transformer.embed.dtype for one in transformer.projections()):
            raise ConfigError("precision: the weights are in 8 bits, expected auto: the flow path reads them too. Leave --precision out.")
        self.transformer, self.flow_path = transformer, transformer.flow
        self.batch_invariant = model.batch_invariant
        self._causal = CausalModel(transformer, model.batch_invariant)
        self._table: Tensor | None = None
        self._grids: dict[tuple[float, ...], Conditions] = {}

    @property
    def flow_width(self) -> int:
        return self.flow_path.latent.flow_width

    @property
    def sigma(self) -> float:
        return self.flow_path.latent.sigma

    @property
    def classes(self) -> int:
        return self.flow_path.latent.classes

    @property
    def hidden_like(self) -> tuple[int, torch.dtype]:
        """Width and dtype of a hidden row."""
        return self.transformer.facts.width, self.transformer.embed.dtype

    def open_cache(self, batch: int, capacity: int) -> KVCache:
        return self._causal.open_cache(batch, capacity)

    def prefill(self, ids: Tensor, lengths: tuple[int, ...], cache: KVCache) -> Tensor:
        return self._causal.prefill(ids, lengths, cache)

    def decode(
        self, tokens: Tensor, cache: KVCache, lengths: tuple[int, ...] | None = None, unread: tuple[bool, ...] | None = None
    ) -> Tensor:
        return self._causal.decode(tokens, cache, lengths, unread)

    def choose(self, rows: Tensor, rule: TokenRule, uniforms: Tensor) -> TokenChoice:
        return self._causal.choose(rows, rule, uniforms)

    def logits(self, rows: Tensor) -> Tensor:
        """Map rows `[N, D]` to fp32 logits `[N, V]`, final norm included."""
        parts = rows.split(1) if self.batch_invariant else (rows,)
        return torch.cat([self.transformer.head.logits(part) for part in parts])

    def vectors(self, tokens: Tensor) -> Tensor:
        """Return the flow vectors of tokens, `[..., Z]` fp32."""
        return torch.nn.functional.embedding(tokens, self.table())

    def table(self) -> Tensor:
        """Return the flow vocabulary `[V, Z]` fp32."""
        if self._table is None:
            self._table = self.flow_path.table()
        return self._table

    def grid(self, times: tuple[float, ...]) -> Conditions:
        """Return layers `[E, C, L, 6, D]` and merge `[E, C, D]` of E times, with C classes (the null one last; 1 without a table).

        The last KEPT_GRIDS are kept; who needs one for longer, as a captured step does, holds on to it.
        """
        if times in self._grids:
            self._grids[times] = self._grids.pop(times)
        else:
            device, C = self.transformer.embed.device, self.classes + 1
            t = torch.tensor(times, dtype=torch.float32, device=device).repeat_interleave(C)
            classes = torch.arange(C, device=device).repeat(len(times)) if self.classes else None
            layers, merge = self.flow_path.conditions(t, classes)
            self._grids[times] = Conditions(layers.unflatten(0, (len(times), C)), merge.unflatten(0, (len(times), C)))
            while len(self._grids) > KEPT_GRIDS:
                del self._grids[next(iter(self._grids))]
        return self._grids[times]

    def flow(
        self,
        x: Tensor,
        scale: Tensor | float,
        at: Conditions | Tensor,
        classes: Tensor,
        hidden: Tensor,
        cache: KVCache,
        positions: Tensor,
        lengths: tuple[int, ...] | None = None,
        unread: tuple[bool, ...] | None = None,
        widths: tuple[int, ...] | None = None,
    ) -> Tensor:
        """Return `[B, W, D]`: h_main + w(t) h_flow for latent states `x` `[B, W, Z]`, before the final norm.

        Args:
            scale: brings x to unit variance, a number or `[B]`. at: one time of a `grid` (`[C, ...]`), or times `[B]` of their own.
            classes: `[B, W]` int64, which of the C. hidden: `[B, D]`, the main path's. positions: `[B]`, where the tokens stand.
            lengths: tokens cached of each sequence, host integers that bound what attention looks at; None is the whole capacity.
            unread, widths: rows nobody looks at, and how many of a row's W states count; zeros stand in the others. Host numbers, used
                where sequences are computed by themselves.
        """
        B, W, _ = x.shape
        if not self.batch_invariant:
            view = cache if lengths is None else cache.view(0, B, max(lengths))
            return self._flow(x, scale, at, classes, hidden, view, positions)
        rows = hidden.new_zeros(B, W, hidden.shape[-1])
        for b in range(B):
            if unread is None or not unread[b]:
                own, width = slice(b, b + 1), W if widths is None else widths[b]
                view = cache.view(b, b + 1, None if lengths is None else lengths[b])
                one = scale[own] if isinstance(scale, Tensor) else scale
                when = at[own] if isinstance(at, Tensor) else at
                rows[own, :width] = self._flow(x[own, :width], one, when, classes[own, :width], hidden[own], view, positions[own])
        return rows

    def _flow(
        self, x: Tensor, scale: Tensor | float, at: Conditions | Tensor, classes: Tensor, hidden: Tensor, cache: KVCache, positions: Tensor
    ) -> Tensor:
        W = x.shape[1]
        if isinstance(at, Tensor):
            layers, merge = self.flow_path.conditions(at.repeat_interleave(W), classes.flatten() if self.classes else None)
        elif self.classes:
            layers, merge = (part.index_select(0, classes.flatten()) for part in at)
        else:
            layers, merge = at
        factor = scale[:, None, None] if isinstance(scale, Tensor) else scale
        h_flow = self.flow_path(self.flow_path.encoded(x, factor), layers, cache, positions)
        merged = hidden[:, None].float() + merge.view(-1, W if len(merge) > 1 else 1, merge.shape[-1]) * h_flow.float()
        return merged.to(hidden.dtype)
