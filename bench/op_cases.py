"""Arguments of each op at the shapes a model meets them in, and the operations they cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lad_engine.contracts import ModelFacts
from lad_engine.kernels.update.cases import random_case
from lad_engine.model.rope import rope_tables
from lad_engine.ops import load_op

Case = dict[str, Any]
LORA_RANK = 128


@dataclass(frozen=True)
class Setting:
    """One shape: a model, a batch, its canvas and answer lengths, and where the tensors are."""

    facts: ModelFacts
    batch: int
    canvas: int
    answer_rows: int
    dtype: torch.dtype
    device: str

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(*shape, device=self.device, dtype=self.dtype) * scale


def op_cases(name: str, at: Setting) -> dict[str, Case]:
    """Return label -> keyword arguments of op `name` at a model's shapes; the op's own largest case where none is listed here."""
    if name in _CASES:
        return _CASES[name](at)
    op = load_op(name)
    largest = max(op.cases(at.device, at.dtype), key=lambda case: op.bytes_moved(**case))
    return {"largest parity case": largest}


def op_flops(name: str, case: Mapping[str, Any]) -> int:
    """Return the multiply-adds x 2 of a call where a matrix unit does them; 0 for ops that only move memory."""
    return _FLOPS[name](case) if name in _FLOPS else 0


def _add_rmsnorm(at: Setting) -> dict[str, Case]:
    x, residual = (at.normal(at.batch, at.canvas, at.facts.width) for _ in range(2))
    return {"": {"x": x, "residual": residual, "weight": at.normal(at.facts.width), "eps": at.facts.norm_eps}}


def _rotary(at: Setting) -> dict[str, Case]:
    cos, sin = (table[: at.canvas].to(at.device) for table in rope_tables(at.facts))
    heads = at.facts.query_heads + at.facts.kv_heads
    packed = at.normal(at.batch, at.canvas, heads + at.facts.kv_heads, at.facts.head_width)
    return {"": {"x": packed[:, :, :heads], "cos": cos, "sin": sin}}


def _swiglu(at: Setting) -> dict[str, Case]:
    return {"": {"gate_up": at.normal(at.batch, at.canvas, 2 * at.facts.mlp_width)}}


def _attention(at: Setting) -> dict[str, Case]:
    H, G = at.facts.query_heads, at.facts.kv_heads
    q, k, v = at.normal(at.batch, at.canvas, H + 2 * G, at.facts.head_width).split((H, G, G), dim=2)
    return {"": {"q": q, "k": k, "v": v}}


def _packed_attention(at: Setting) -> dict[str, Case]:
    H, G = at.facts.query_heads, at.facts.kv_heads
    cos, sin = (table[: at.canvas].to(at.device) for table in rope_tables(at.facts))
    qkv = at.normal(at.batch, at.canvas, H + 2 * G, at.facts.head_width)
    whole = {"qkv": qkv, "cos": cos, "sin": sin, "query_heads": H, "kv_heads": G, "lengths": None}
    # A captured step always has lengths, of which the first is the whole canvas and the others end before it.
    lengths = at.canvas - torch.arange(at.batch, device=at.device) * (at.canvas // 16)
    return {"no lengths": whole, "lengths": {**whole, "lengths": lengths}}


def _decode_attention(at: Setting) -> dict[str, Case]:
    H, G, K = at.facts.query_heads, at.facts.kv_heads, at.facts.head_width
    cos, sin = (table.to(at.device) for table in rope_tables(at.facts))
    keys, values = (at.normal(at.batch, at.canvas, G, K) for _ in range(2))
    positions = torch.full((at.batch,), at.canvas - 1, device=at.device)
    return {"": {"qkv": at.normal(at.batch, H + 2 * G, K), "keys": keys, "values": values, "positions": positions, "cos": cos, "sin": sin}}


def _gate_up(at: Setting) -> dict[str, Case]:
    D, F = at.facts.width, at.facts.mlp_width
    return {"": {"x": at.normal(at.batch, at.canvas, D), "weight": at.normal(2 * F, D, scale=D**-0.5)}}


def _few_row_linear(at: Setting) -> dict[str, Case]:
    D, F, B = at.facts.width, at.facts.mlp_width, at.batch
    heads = (at.facts.query_heads + 2 * at.facts.kv_heads) * at.facts.head_width
    normed = {"x": at.normal(B, D), "residual": at.normal(B, D), "norm": at.normal(D), "eps": at.facts.norm_eps}
    return {
        "qkv": {**normed, "weight": at.normal(heads, D, scale=D**-0.5)},
        "gate_up": {**normed, "weight": at.normal(2 * F, D, scale=D**-0.5), "is_gated": True},
        "down": {"x": at.normal(B, F), "weight": at.normal(D, F, scale=F**-0.5)},
    }


def _stack(at: Setting, rows: int, inputs: int, parts: tuple[tuple[int, int], ...], adapters: int = 4) -> tuple:
    rank = min(LORA_RANK, inputs)
    a = at.normal(adapters, len(parts), rank, inputs, scale=inputs**-0.5)
    b = at.normal(adapters, rows, rank, scale=rank**-0.5)
    index = torch.arange(at.batch, device=at.device) % adapters
    return a, b, torch.ones(adapters, device=at.device), index, parts


def _lora_linear(at: Setting) -> dict[str, Case]:
    facts = at.facts
    D, q, kv = facts.width, facts.query_heads * facts.head_width, facts.kv_heads * facts.head_width
    out = {}
    for label, rows, inputs in (
        ("qkv", q + 2 * kv, D),
        ("output", D, q),
        ("gate_up", 2 * facts.mlp_width, D),
        ("down", D, facts.mlp_width),
    ):
        x, weight = at.normal(at.batch, at.canvas, inputs), at.normal(rows, inputs, scale=inputs**-0.5)
        out[label] = {"x": x, "weight": weight, "bias": None, "paths": ()}
    rank = min(LORA_RANK, D)
    paths = tuple(
        (at.normal(rank, D, scale=D**-0.5), at.normal(stop - start, rank, scale=rank**-0.5), 1.0, start, stop)
        for start, stop in ((0, q), (q + kv, q + 2 * kv))
    )
    out[f"qkv, rank {rank} on q and v"] = {**out["qkv"], "paths": paths}
    parts = ((0, q), (q + kv, q + 2 * kv))
    out[f"qkv, rank {rank} by sequence"] = {**out["qkv"], "stack": _stack(at, q + 2 * kv, D, parts)}
    return out


def _rule(rows: int, at: Setting, top_k: int) -> Case:
    device = at.device
    return {
        "uniforms": torch.rand(rows, device=device).clamp(1e-6, 1 - 1e-6),
        "temperature": torch.full((rows,), 0.7, device=device),
        "top_k": torch.full((rows,), top_k, dtype=torch.int64, device=device),
        "top_p": torch.ones(rows, device=device),
        "drop_crossing": torch.zeros(rows, dtype=torch.bool, device=device),
        "full_confidence": torch.ones(rows, dtype=torch.bool, device=device),
        "bias_ids": torch.tensor([1, 2], device=device),
        "bias_values": torch.tensor([[-torch.inf, 0.5]], device=device).expand(rows, -1),
        "max_top_k": top_k,
        "samples_all": False,
    }


def _choose_token(at: Setting) -> dict[str, Case]:
    rows = at.batch * at.answer_rows
    logits = at.normal(rows, at.facts.vocab_size)
    return {f"top {k}": {"logits": logits, **_rule(rows, at, k)} for k in (1, 3, 50)}


def _lm_head(at: Setting) -> dict[str, Case]:
    rows, D = at.batch * at.answer_rows, at.facts.width
    # Small multiples of a power of two: every sum of products is exact in fp32, so no backend's order changes which token is chosen.
    numbers = {"device": at.device, "dtype": torch.int64}
    hidden, weight = (torch.randint(-8, 9, (n, D), **numbers).to(at.dtype) for n in (rows, at.facts.vocab_size))
    shared = {"rows": hidden / 8, "weight": weight / 64}
    return {f"top {k}": {**shared, **_rule(rows, at, k)} for k in (1, 3, 50)}


def _renoise(at: Setting) -> dict[str, Case]:
    B, R, device = at.batch, at.answer_rows, at.device
    case = {
        "tokens": torch.randint(8, at.facts.vocab_size, (B, R), device=device),
        "eligible": torch.rand(B, R, device=device) < 0.9,
        "weight": torch.rand(B, R, device=device),
        "count": torch.full((B,), R // 2, device=device),
        "seeds": torch.arange(B, device=device) + 11,
        "step": torch.tensor(3, device=device),
        "mask_id": 1,
    }
    return {"": case}


def _update(at: Setting) -> dict[str, Case]:
    cases = {}
    for rule in ("random", "weighted", "confidence", "retain"):
        case = random_case(torch.Generator().manual_seed(0), ((rule, ""),) * at.batch, at.answer_rows, 4, at.device)
        # A row that ends costs nothing from then on, and a timing takes the same buffers through many steps.
        case["buffers"].steps.fill_(2**62)
        case["buffers"].early_stop.fill_(False)
        case["buffers"].done.fill_(False)
        cases[rule] = case
    return cases


def _linear_flops(case: Mapping[str, Any]) -> int:
    rows = case["x"].numel() // case["x"].shape[-1]
    weights = case["weight"].numel() + sum(path[0].numel() + path[1].numel() for path in case.get("paths", ()))
    if case.get("stack") is not None:
        # Every row goes through one adapter of the stack.
        a, b = case["stack"][:2]
        weights += a[0].numel() + b[0].numel()
    return 2 * rows * weights


def _attention_flops(case: Mapping[str, Any]) -> int:
    B, T, H, K = case["q"].shape
    return 4 * B * H * T * case["k"].shape[1] * K


def _packed_flops(case: Mapping[str, Any]) -> int:
    B, T, _, K = case["qkv"].shape
    return 4 * B * case["query_heads"] * T * T * K


_CASES: dict[str, Callable[[Setting], dict[str, Case]]] = {
    "add_rmsnorm": _add_rmsnorm,
    "rotary": _rotary,
    "swiglu": _swiglu,
    "attention": _attention,
    "packed_attention": _packed_attention,
    "decode_attention": _decode_attention,
    "gate_up": _gate_up,
    "few_row_linear": _few_row_linear,
    "lora_linear": _lora_linear,
    "choose_token": _choose_token,
    "lm_head": _lm_head,
    "renoise": _renoise,
    "update": _update,
}
_FLOPS: dict[str, Callable[[Mapping[str, Any]], int]] = {
    "attention": _attention_flops,
    "packed_attention": _packed_flops,
    "lora_linear": _linear_flops,
    "gate_up": _linear_flops,
    "few_row_linear": _linear_flops,
    "quantised_linear": _linear_flops,
    "lm_head": lambda case: 2 * case["rows"].shape[0] * case["weight"].numel(),
}
