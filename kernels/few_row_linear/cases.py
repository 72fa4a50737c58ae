"""Inputs on which every few_row_linear backend must agree with the reference."""

from __future__ import annotations

import torch


def cases(device: str, dtype: torch.dtype) -> list[dict]:
    """Return keyword arguments: smallest, odd, bias, norm with and without residual, gated, most rows, an eps that matters, a slice."""

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=device).to(dtype) / shape[-1] ** 0.5

    plain = {"x": normal(1, 64), "weight": normal(48, 64)}
    odd = {"x": normal(3, 123), "weight": normal(37, 123), "bias": normal(37)}
    model = {"x": normal(1, 576) * 24, "weight": normal(300, 576)}
    normed = {**model, "residual": normal(1, 576) * 24, "norm": normal(576) * 24}
    gated = {**normed, "weight": normal(2 * 70, 576), "is_gated": True}
    rows = {"x": normal(8, 576) * 24, "weight": normal(2 * 65, 576), "bias": normal(130), "is_gated": True, "norm": normal(576) * 24}
    tiny = {**normed, "x": normed["x"] * 3e-3, "residual": normed["residual"] * 3e-3, "eps": 1e-4}
    sliced = {**plain, "x": normal(2, 128)[:, 64:], "weight": normal(48, 128)[:, :64]}
    return [{"x": normal(1, 1), "weight": normal(1, 1)}, plain, odd, normed, {**normed, "residual": None}, gated, rows, tiny, sliced]


def bytes_moved(x: torch.Tensor, weight: torch.Tensor, **_: object) -> int:
    """Read the weight once; x and the output are small beside it."""
    return (weight.numel() + x.numel() + x.shape[0] * weight.shape[0]) * x.element_size()


def shape(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    norm: torch.Tensor | None = None,
    eps: float = 1e-5,
    is_gated: bool = False,
) -> tuple[dict, dict]:
    """Return what a measured table knows a call by; with: what is done in the same launch as the product."""
    parts = [name for name, is_there in (("norm", norm is not None), ("gate", is_gated)) if is_there]
    dtype = str(x.dtype).removeprefix("torch.")
    return {"D": weight.shape[1], "O": weight.shape[0], "with": " and ".join(parts) or "none", "dtype": dtype}, {"M": max(x.shape[0], 1)}
