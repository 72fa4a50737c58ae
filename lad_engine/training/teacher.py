"""The frozen base as a teacher: what its layers read and what it expects next, on clean text, from left to right, without the adapter."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..model.projection import Projection

# Layers whose input is compared, evenly spaced; the last norm's output comes on top.
TAPPED_LAYERS = 6


class Reading(NamedTuple):
    """hidden: `[B, T, D]` before the final norm. normed: `[B, T, D]` each, what tapped layers and the head read."""

    hidden: Tensor
    normed: tuple[Tensor, ...]


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
    """The model's own base, which the adapter must not forget.

    expected: token-level distillation (Hinton et al., arXiv 1503.02531). A denoiser cannot know which of several continuations an example
    took; the base's p(x_j | x_<j) over the clean text names them all, so that one example teaches what many would.
    distance: hidden-state matching, layer by layer, as in MOHAWK (Bick et al., arXiv 2408.10189). Attention that suddenly looks ahead
    disturbs every layer's input on text that the base could read before; bringing it back is a target at every position of that text.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        layers = model.transformer.layers
        step = max(len(layers) // TAPPED_LAYERS, 1)
        self._tapped = [layer.qkv for layer in list(layers)[step - 1 :: step]]

    @torch.no_grad()
    def read(self, ids: Tensor) -> Reading:
        """Read clean ids `[B, T]` as the base does."""
        transformer = self._model.transformer
        is_past = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool, device=ids.device).tril()
        was_training = transformer.training
        transformer.eval()
        with bare(transformer.projections()), self.listening() as heard:
            hidden = transformer(ids, mask=is_past)
        transformer.train(was_training)
        return self.reading(hidden, heard)

    @contextmanager
    def listening(self) -> Iterator[list[Tensor]]:
        """Yield a list that receives what the tapped layers read, in their order, while the model runs once."""
        heard: list[Tensor] = []
        with ExitStack() as stack:
            for projection in self._tapped:
                stack.callback(projection.register_forward_pre_hook(lambda _, args: heard.append(args[0])).remove)
            yield heard

    def reading(self, hidden: Tensor, heard: list[Tensor]) -> Reading:
        """Put together what one run gave."""
        return Reading(hidden, (*heard, self._model.head.normed(hidden)))

    def expected(self, rows: Tensor) -> Tensor:
        """Map the base's rows `[N, D]` to its fp32 logits `[N, V]`."""
        with bare([self._model.head.projection]):
            return self._model.head.logits(rows)


def distance(student: Reading, teacher: Reading, is_compared: Tensor) -> Tensor:
    """Return the mean of |s - t|^2 / |t|^2 over the rows that `is_compared` `[B, T]` names and over what was tapped; 0 for no rows."""
    if not bool(is_compared.any()):
        return student.hidden.new_zeros(())
    total = student.hidden.new_zeros(())
    for s, t in zip(student.normed, teacher.normed, strict=True):
        s, t = s[is_compared].float(), t[is_compared].float()
        total = total + ((s - t).square().sum(-1) / t.square().sum(-1)).mean()
    return total / len(teacher.normed)
