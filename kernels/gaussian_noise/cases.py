"""Inputs on which every gaussian_noise backend must agree with the reference."""

from __future__ import annotations

import torch

from ..random.reference import SAMPLE, SIMPLEX_NOISE


def cases(device: str, dtype: torch.dtype) -> list[dict]:
    """Return keyword arguments: smallest, odd, a vocabulary, 64-bit seeds, another step and purpose."""

    def case(N: int, count: int, step: int = 0, purpose: int = SIMPLEX_NOISE) -> dict:
        rows = torch.arange(N, device=device)
        return {"seeds": rows * (2**40 + 7), "positions": rows * 3, "steps": rows + step, "purpose": purpose, "count": count}

    return [case(1, 1), case(5, 123), case(2, 49152, step=99), case(3, 4096, step=2**31, purpose=SAMPLE)]


def bytes_moved(seeds: torch.Tensor, count: int, **_: object) -> int:
    """Every number is written once."""
    return seeds.numel() * (4 * count + 24)
