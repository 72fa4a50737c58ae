"""Inputs on which every lm_head backend must agree with the reference.

Rows and weights are small integers and a power of two, so that a sum of products is the same number in any order: what is chosen
among near ties would otherwise depend on the order of a GEMM.
"""

from __future__ import annotations

import torch

from ..choose_token.cases import rule_columns

MODEL_WIDTH = 576


def cases(device: str, dtype: torch.dtype) -> list[dict]:
    """Return keyword arguments: smallest, odd, model width, strided, and one case in which each parameter matters."""
    out = [
        _case(device, dtype, 1, 1, 64),
        _case(device, dtype, 17, 123, 65, max_top_k=7, top_k=7, temperature=0.7),
        _case(device, dtype, 3, 5000, MODEL_WIDTH, max_top_k=3, top_k=3, temperature=0.5),
        _case(device, dtype, 2, 5000, 64, max_top_k=50, top_k=50, top_p=0.9, temperature=1.3),
    ]
    strided = _case(device, dtype, 6, 200, 64, max_top_k=3, top_k=3)
    strided["rows"] = _integers(device, dtype, 12, 64)[::2]
    strided["weight"] = _integers(device, dtype, 400, 80)[::2, :64]
    greedy = _case(device, dtype, 123, 300, 96)
    # Several ids of one score: the lowest one wins.
    greedy["weight"] = greedy["weight"][torch.arange(300, device=device) % 7]
    out += [strided, greedy]
    out.append(_case(device, dtype, 3, 500, 64, max_top_k=1, top_k=0, temperature=0.8, samples_all=True))
    out.append(_case(device, dtype, 3, 500, 64, max_top_k=0, top_k=0, top_p=0.6))
    out.append({**out[-1], "drop_crossing": torch.ones(3, dtype=torch.bool, device=device)})
    mixed = _case(device, dtype, 6, 400, 64, max_top_k=5)
    mixed["top_k"] = torch.tensor([0, 5, 1, 3, 4, 2], device=device)
    mixed["temperature"] = torch.tensor([0.0, 0.5, 1.0, 0.0, 2.0, 1.0], device=device)
    mixed["top_p"] = torch.tensor([1.0, 0.5, 1.0, 1.0, 0.9, 0.3], device=device)
    mixed["drop_crossing"] = torch.tensor([False, True, False, False, True, False], device=device)
    out.append(mixed)
    return out


def bytes_moved(rows: torch.Tensor, weight: torch.Tensor, **_: object) -> int:
    """Read the rows and the weight once, write a token and a confidence per row."""
    return (rows.numel() + weight.numel()) * rows.element_size() + rows.shape[0] * 12


def shape(rows: torch.Tensor, weight: torch.Tensor, *_: object, max_top_k: int, samples_all: bool, **__: object) -> tuple[dict, dict]:
    """Return what a measured table knows a call by; keys: the candidates that are sorted, rounded up, or "whole" rows of logits."""
    keys = "whole" if samples_all or not max_top_k else 1 << (max_top_k - 1).bit_length()
    dtype = str(rows.dtype).removeprefix("torch.")
    return {"D": weight.shape[1], "V": weight.shape[0], "keys": keys, "dtype": dtype}, {"rows": max(rows.shape[0], 1)}


def _case(device: str, dtype: torch.dtype, N: int, V: int, D: int, **rule: object) -> dict:
    return {
        "rows": _integers(device, dtype, N, D),
        "weight": _integers(device, dtype, V, D) / 8,
        **rule_columns(device, N, V, **rule),
    }


def _integers(device: str, dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.randint(-1, 2, shape, device=device).to(dtype)
