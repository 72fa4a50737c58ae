"""Inputs on which every random-number backend must agree with the reference bit for bit."""

from __future__ import annotations

import torch

from .reference import DATA_ORDER, RENOISE, SAMPLE


def cases(device: str, dtype: torch.dtype) -> list[dict]:
    """Return keyword arguments: smallest, odd, a long answer, 64-bit seeds, strided positions, other steps and purpose."""

    def case(seeds: list[int], positions: torch.Tensor, step: int | list[int], purpose: int) -> dict:
        return {
            "seeds": torch.tensor(seeds, device=device),
            "positions": positions.to(device),
            "step": torch.tensor(step, device=device),
            "purpose": purpose,
        }

    odd = torch.arange(123)
    return [
        case([0], torch.zeros(1, dtype=torch.int64), 0, SAMPLE),
        case([1, 2, 3, 2**40 + 7, 2**63 - 1], odd, 5, SAMPLE),
        case([1, 2, 3], odd, 6, SAMPLE),
        case([1, 2, 3], odd, 5, RENOISE),
        case([7], torch.arange(4096), 2**31, DATA_ORDER),
        case([9, 9], torch.arange(64)[::2], 1, SAMPLE),
        case([4, 4, 2**40], odd, [0, 7, 7], SAMPLE),
    ]


def bytes_moved(seeds: torch.Tensor, positions: torch.Tensor, **_: object) -> int:
    """Positions and seeds read, one fp32 written per pair."""
    return 8 * (seeds.numel() + positions.numel()) + 4 * seeds.numel() * positions.numel()
