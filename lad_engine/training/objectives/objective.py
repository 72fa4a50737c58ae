"""What the trainer asks of an objective: corrupt a clean batch, then weigh how well it is restored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from ..config import TrainConfig


@dataclass(frozen=True)
class CleanBatch:
    """Clean canvases on the device: ids `[B, T]`, answer_start, first_eos `[B]` int64; the answer region runs to T, EOS from first_eos on.

    seeds: `[B]` int64, one noise key per example. draw: `[]` int64, the noise counter of the run. update: optimiser updates done so far.
    labels: `[B]` int64, the place of each example's source in the run's data.
    """

    ids: Tensor
    answer_start: Tensor
    first_eos: Tensor
    seeds: Tensor
    draw: Tensor
    update: int
    labels: Tensor | None = None


@dataclass(frozen=True)
class Setting:
    """What an objective is built with: the run's config, its ops, the ids, and the trainable parameters behind the last layer."""

    config: TrainConfig
    ops: Any
    mask_id: int
    eos_id: int
    head_parameters: tuple[nn.Parameter, ...] = ()


class NoisedBatch(Protocol):
    """divisor: `[]` fp32; the losses of all micro-batches of an update are summed and divided by the sum of their divisors."""

    @property
    def divisor(self) -> Tensor: ...


class Objective(Protocol):
    """One way to train; built with a `Setting`."""

    def draw(self, clean: CleanBatch) -> NoisedBatch:
        """Corrupt a batch; every random number is keyed by the example and the draw, so that a resumed run repeats nothing."""
        ...

    def loss(self, model: Any, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the undivided loss `[]`, differentiable, and numbers `[]` worth logging by name (means over the batch)."""
        ...
