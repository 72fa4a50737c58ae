"""Standard normal numbers of whole rows, where somebody keeps them, in plain PyTorch."""

from __future__ import annotations

from torch import Tensor

from ..random.reference import normal


def gaussian_noise(seeds: Tensor, positions: Tensor, steps: Tensor, purpose: int, count: int) -> Tensor:
    """Draw `count` numbers per row, those `soft_embedding` makes for itself; see `normal` in `kernels/random`.

    Args:
        seeds, positions, steps: `[N]` int64. purpose: see `kernels/random`.
    Returns:
        `[N, count]` fp32, within NORMAL_TOLERANCE of the reference.
    Raises:
        ValueError: a shape disagrees.
    """
    check(seeds, positions, steps)
    return normal(seeds, positions, steps, purpose, count)


def check(seeds: Tensor, positions: Tensor, steps: Tensor) -> None:
    """Raise ValueError where a shape disagrees."""
    for name, column in (("positions", positions), ("steps", steps)):
        if column.shape != seeds.shape or seeds.dim() != 1:
            raise ValueError(f"gaussian_noise: {name} is {tuple(column.shape)}, expected {tuple(seeds.shape)} to match seeds.")
