"""Calls that every backend of structured_noise is checked with: each variant, odd lengths, answers of one and two tokens."""

from __future__ import annotations

import torch

from .reference import VARIANTS


def cases(device: str | torch.device, dtype: torch.dtype) -> list[dict]:
    """Return keyword arguments; `dtype` is not used, ids are int64."""
    made = [_case(device, batch=1, width=1, variant="paper"), _case(device, batch=3, width=123, variant="paper", fixed_level=0.3)]
    made += [_case(device, batch=64, width=width, variant=variant) for variant in VARIANTS for width in (7, 123)]
    return made


def _case(device: str | torch.device, batch: int, width: int, variant: str, fixed_level: float | None = None) -> dict:
    generator = torch.Generator().manual_seed(width * 1000 + batch)
    ids = torch.randint(5, 1000, (batch, width), generator=generator)
    start = torch.randint(0, width, (batch,), generator=generator)
    lengths = start + 1 + (torch.rand(batch, generator=generator) * (width - start)).long()
    seeds = torch.randint(0, 2**62, (batch,), generator=generator)
    tensors = {"ids": ids, "answer_start": start, "lengths": lengths.clamp(max=width), "seeds": seeds, "step": torch.tensor(17)}
    return {**{name: tensor.to(device) for name, tensor in tensors.items()}, "mask_id": 3, "variant": variant, "fixed_level": fixed_level}


def bytes_moved(ids: torch.Tensor, **_: object) -> int:
    """Ids read once and written once."""
    return 2 * ids.numel() * ids.element_size()
