"""Inputs on which every renoise backend must agree with the reference bit for bit."""

from __future__ import annotations

import torch

from ..random.reference import RETAIN

MASK_ID = 16


def cases(device: str, dtype: torch.dtype) -> list[dict]:
    """Return keyword arguments: smallest, odd, long, weighted, zero weights, strided rows, and every parameter mattering."""

    def case(B: int, R: int, count: list[int], weighted: bool = False, **rest: object) -> dict:
        weight = torch.rand(B, R, device=device) ** 4 if weighted else torch.ones(B, R, device=device)
        return {
            "tokens": torch.randint(100, 40000, (B, R), device=device),
            "eligible": torch.rand(B, R, device=device) < 0.8,
            "weight": weight,
            "count": torch.tensor(count, device=device),
            "seeds": torch.arange(B, device=device) * 2**33 + 11,
            "step": torch.tensor(3, device=device),
            "mask_id": MASK_ID,
            **rest,
        }

    odd = case(5, 123, [0, 1, 60, 123, 10**9])
    plain = case(4, 64, [20, 20, 20, 20])
    zero = case(3, 64, [10, 40, 64], weight=torch.zeros(3, 64, device=device))
    wide = {name: case(3, 128, [9, 30, -1], weighted=True)[name] for name in ("tokens", "weight")}
    strided = {**case(3, 64, [9, 30, -1]), **{name: value[:, 32:96] for name, value in wide.items()}}
    return [
        case(1, 1, [1]),
        odd,
        case(2, 1024, [512, 1000], weighted=True),
        plain,
        {**plain, "step": plain["step"] + 1},
        {**plain, "purpose": RETAIN},
        {**plain, "mask_id": 5},
        zero,
        strided,
        {**plain, "eligible": torch.zeros_like(plain["eligible"])},
    ]


def bytes_moved(tokens: torch.Tensor, **_: object) -> int:
    """Tokens read and written, eligibility and weight read."""
    return tokens.numel() * (8 + 8 + 1 + 4)
