"""Inputs on which every modulated_norm backend must agree with the reference."""

from __future__ import annotations

import torch


def cases(device: str, dtype: torch.dtype) -> list[dict]:
    """Return keyword arguments: smallest, odd, model widths, no residual, one modulation for all rows, and a small eps that matters."""
    out = []
    for rows, D in ((1, 1), (5, 123), (7, 576), (3, 2048)):
        x, residual = (torch.randn(rows, D, device=device).to(dtype) for _ in range(2))
        gate, weight, shift = (torch.randn(rows, D, device=device) for _ in range(3))
        out.append({"x": x, "residual": residual, "gate": gate, "weight": weight, "shift": shift, "eps": 1e-5})
    model = out[2]
    out.append({**model, "residual": None, "gate": None})
    out.append({**model, **{name: model[name][:1].expand(7, -1) for name in ("gate", "weight", "shift")}})
    out.append({**model, "x": model["x"] * 3e-3, "residual": model["residual"] * 3e-3, "eps": 1e-4})
    return out


def bytes_moved(x: torch.Tensor, residual: torch.Tensor | None, **_: object) -> int:
    """Read x, residual and the row's modulation, write y and h."""
    rows, D = x.shape
    return rows * D * (x.element_size() * (4 if residual is not None else 2) + 4 * (3 if residual is not None else 2))
