"""Inputs on which every attention backend must agree with the reference."""

from __future__ import annotations

import torch

SHAPES = {  # B, T, S, H, G, K
    "smallest": (1, 1, 1, 1, 1, 64),
    "odd": (2, 123, 123, 6, 2, 64),
    "smollm2": (1, 96, 96, 9, 3, 64),
    "wide_head": (1, 65, 65, 4, 4, 128),
    "between": (1, 70, 70, 2, 1, 96),
    "cached": (1, 3, 40, 4, 2, 64),
}


def cases(device: str, dtype: torch.dtype) -> list[dict]:
    """Return keyword arguments: smallest, odd, model width, cached decode, lengths, causal, slices of a packed projection."""
    out = []
    for B, T, S, H, G, K in SHAPES.values():
        q, k, v = (torch.randn(B, n, heads, K, device=device).to(dtype) for n, heads in ((T, H), (S, G), (S, G)))
        out.append({"q": q, "k": k, "v": v})
    odd, model, cached = out[1], out[2], out[-1]
    out.append({**odd, "lengths": torch.tensor([123, 7], device=device)})
    out.append({**odd, "is_causal": True})
    out.append({**cached, "is_causal": True})
    packed = torch.cat((model["q"], model["k"], model["v"]), dim=2)
    out.append(dict(zip("qkv", packed.split((9, 3, 3), dim=2), strict=True)))
    return out


def bytes_moved(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **_: object) -> int:
    """Read q, k and v once, write the output once."""
    return sum(t.numel() * t.element_size() for t in (q, k, v, q))
