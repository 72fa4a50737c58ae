"""Inputs on which every choose_token backend must agree with the reference."""

from __future__ import annotations

import torch

MODEL_VOCABULARY = 49152


def cases(device: str, dtype: torch.dtype) -> list[dict]:
    """Return keyword arguments: smallest, odd, model width, strided, ties, and one case in which each parameter matters."""
    out = [
        _case(device, dtype, 1, 2),
        _case(device, dtype, 5, 123, max_top_k=7, top_k=7, temperature=0.7),
        _case(device, dtype, 8, MODEL_VOCABULARY),
        _case(device, dtype, 2, MODEL_VOCABULARY, max_top_k=50, top_k=50, top_p=0.9, temperature=1.3),
    ]
    strided = _case(device, dtype, 6, 200, max_top_k=3, top_k=3, temperature=1.0)
    strided["logits"] = torch.randn(12, 200, device=device).to(dtype)[::2]
    ties = _case(device, dtype, 6, 300, max_top_k=4, top_k=4, temperature=1.0)
    ties["logits"] = torch.randint(0, 3, (6, 300), device=device).to(dtype)
    greedy_ties = {**ties, "max_top_k": 1, "top_k": torch.ones_like(ties["top_k"])}
    out += [strided, ties, greedy_ties]
    out.append(_case(device, dtype, 9, 500, max_top_k=1, top_k=0, temperature=0.8, samples_all=True))
    out.append(_case(device, dtype, 3, 500, max_top_k=0, top_k=0, temperature=1.0, top_p=0.6))
    out.append({**out[-1], "drop_crossing": torch.ones(3, dtype=torch.bool, device=device)})
    out.append({**out[-1], "full_confidence": torch.zeros(3, dtype=torch.bool, device=device)})
    mixed = _case(device, dtype, 6, 400, max_top_k=5, samples_all=True)
    mixed["top_k"] = torch.tensor([0, 5, 1, 3, 0, 2], device=device)
    mixed["temperature"] = torch.tensor([1.0, 0.5, 1.0, 0.0, 2.0, 1.0], device=device)
    mixed["top_p"] = torch.tensor([1.0, 0.5, 1.0, 1.0, 1.0, 0.3], device=device)
    out.append(mixed)
    return out


def bytes_moved(logits: torch.Tensor, **_: object) -> int:
    """Read the logits once, write a token and a confidence per row."""
    return logits.numel() * logits.element_size() + logits.shape[0] * 12


def rule_columns(
    device: str,
    N: int,
    V: int,
    max_top_k: int = 1,
    top_k: int = 1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    samples_all: bool = False,
) -> dict:
    """Return every argument but the scores: one rule for N rows, a forbidden id, another favoured one, both kinds of confidence."""
    return {
        "uniforms": torch.rand(N, device=device).clamp(1e-6, 1 - 1e-6),
        "temperature": torch.full((N,), temperature, device=device),
        "top_k": torch.full((N,), top_k, dtype=torch.int64, device=device),
        "top_p": torch.full((N,), top_p, device=device),
        "drop_crossing": torch.zeros(N, dtype=torch.bool, device=device),
        "full_confidence": torch.arange(N, device=device) % 2 == 0,
        "bias_ids": torch.tensor([1, V - 1] if V > 2 else [V - 1], device=device),
        "bias_values": torch.tensor([[-torch.inf, 0.5] if V > 2 else [-torch.inf if V > 1 else 0.5]], device=device).expand(N, -1),
        "max_top_k": max_top_k,
        "samples_all": samples_all,
    }


def _case(device: str, dtype: torch.dtype, N: int, V: int, **rule: object) -> dict:
    return {"logits": (torch.randn(N, V, device=device) * 3).to(dtype), **rule_columns(device, N, V, **rule)}
