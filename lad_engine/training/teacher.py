"""The frozen base as a teacher: what it expects next at every place of the clean text, read from left to right without the adapter."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..model.projection import Projection

# Rows of examples read once are kept up to this many bytes; later examples are read again each time.
KEPT_BYTES = 2**30


@contextmanager
def bare(projections: Iterable[Projection]) -> Iterator[None]:
    """Take the low-rank paths off for a while, so that the weights alone make the products."""
    kept = [(projection, projection.low_rank) for projection in projections]
    for projection, _ in kept:
        projection.detach()
    try:
        yield
    finally:
        for projection, paths in kept:
            projection.low_rank = paths


class Teacher:
    """Token-level distillation from the model's own base (Hinton et al., arXiv 1503.02531; sequence level: Kim and Rush, arXiv 1606.07947).

    A denoiser that has hidden tokens beside it cannot know which of several continuations an example took. The base's distribution
    p(x_j | x_<j) over the clean text names them all, so that one example teaches what many would.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._kept: dict[int, Tensor] = {}
        self._bytes = 0

    @torch.no_grad()
    def rows(self, ids: Tensor, first_eos: Tensor, seeds: Tensor) -> Tensor:
        """Return `[B, T, D]`: row j-1 expects position j, for every j up to the first EOS; zeros beyond.

        ids: `[B, T]` int64, clean. first_eos: `[B]`. seeds: `[B]`, one per example, by which its rows are kept.
        """
        rows = self._model.head.norm.new_zeros(*ids.shape, self._model.transformer.facts.width)
        for b, (name, end) in enumerate(zip(seeds.tolist(), first_eos.tolist(), strict=True)):
            part = self._kept.get(name)
            if part is None:
                # Each example by itself: its rows then have the same bits in a run that was resumed and kept none.
                part = self._read(ids[b : b + 1, :end])
                if self._bytes + part.nbytes <= KEPT_BYTES:
                    self._kept[name] = part
                    self._bytes += part.nbytes
            rows[b, : len(part)] = part
        return rows

    def _read(self, ids: Tensor) -> Tensor:
        """Return the base's rows `[T, D]` of one text `[1, T]`."""
        transformer = self._model.transformer
        is_past = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool, device=ids.device).tril()
        was_training = transformer.training
        transformer.eval()
        with bare(transformer.projections()):
            rows = transformer(ids, mask=is_past)[0]
        transformer.train(was_training)
        return rows

    def logits(self, rows: Tensor) -> Tensor:
        """Map rows `[N, D]` to the base's fp32 logits `[N, V]`."""
        with bare([self._model.head.projection]):
            return self._model.head.logits(rows)
