"""Order and canvases: which examples form each batch of an epoch, and their ids padded with EOS to a common window."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .data import Examples

# Sorting by length inside this many batches wastes little padding and keeps the order random beyond it.
BATCHES_PER_POOL = 32


@dataclass(frozen=True)
class Batch:
    """Clean canvases: ids `[B, T]`, answer_start, first_eos and keys `[B]` int64; the answer region runs to T, EOS from first_eos on."""

    ids: Tensor
    answer_start: Tensor
    first_eos: Tensor
    keys: Tensor


@dataclass
class Position:
    """Where the data stands: the next batch of an epoch."""

    epoch: int = 0
    batch: int = 0


class BatchOrder:
    """The batches of every epoch as a pure function of (seed, epoch).

    Each example is taken floor(weight) times and once more with the remaining probability; copies are shuffled, cut into pools,
    sorted by length inside a pool and cut into batches, whose order is shuffled. What fills no batch is left out of its epoch, drawn anew
    each time, unless it is all there is.
    """

    def __init__(self, examples: Examples, batch_size: int, seed: int) -> None:
        self.examples, self.batch_size, self.seed = examples, batch_size, seed
        self._epoch, self._batches = -1, []

    def batches(self, epoch: int) -> list[np.ndarray]:
        """Return the index arrays of one epoch."""
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._make(epoch)
        return self._batches

    def take(self, position: Position) -> np.ndarray:
        """Return the batch at `position` and move on, into the next epoch where this one ends."""
        batches = self.batches(position.epoch)
        while position.batch >= len(batches):
            position.epoch, position.batch = position.epoch + 1, 0
            batches = self.batches(position.epoch)
        position.batch += 1
        return batches[position.batch - 1]

    def _make(self, epoch: int) -> list[np.ndarray]:
        generator = np.random.Generator(np.random.Philox(key=[self.seed, epoch]))
        weight = self.examples.weight
        copies = np.floor(weight + generator.random(len(weight))).astype(np.int64)
        order = generator.permutation(np.repeat(np.arange(len(weight)), copies))
        if len(order) < self.batch_size:
            return [order if len(order) else generator.permutation(len(weight))[: self.batch_size]]
        batches = []
        pool = self.batch_size * BATCHES_PER_POOL
        for start in range(0, len(order), pool):
            part = order[start : start + pool]
            # Cut before the sort: behind it the longest examples would go, in a small set the same ones every epoch.
            part = part[: len(part) - len(part) % self.batch_size]
            part = part[np.argsort(self.examples.total[part], kind="stable")]
            batches += [part[i : i + self.batch_size] for i in range(0, len(part), self.batch_size)]
        return [batches[i] for i in generator.permutation(len(batches))]


def lay_out_batch(examples: Examples, indices: np.ndarray, eos_id: int, window: int) -> Batch:
    """Write prompt, answer and EOS to the end of a `window` for each example."""
    ids = np.full((len(indices), window), eos_id, dtype=np.int64)
    for row, index in enumerate(indices):
        prompt, answer = examples.prompt(index), examples.answer(index)
        ids[row, : len(prompt)] = prompt
        ids[row, len(prompt) : len(prompt) + len(answer)] = answer
    start = examples.prompt_length[indices]
    keys = examples.key[indices]
    return Batch(*(torch.from_numpy(np.ascontiguousarray(a)) for a in (ids, start, start + examples.answer_length[indices], keys)))


def window_length(least: int, max_length: int, eos_pads: int, tail_power: float, draw: float) -> int:
    """Return T of a batch whose longest row needs `least`: at least eos_pads more, then draw^power of the room up to max_length."""
    least = min(least + eos_pads, max_length)
    if tail_power == 0:
        return least
    return least + round((max_length - least) * draw**tail_power)
