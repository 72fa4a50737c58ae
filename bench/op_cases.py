"""Arguments of each op at the shapes a model meets them in, the operations they cost, and the library call they compete with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from lad_engine.contracts import ModelFacts
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


def op_peers(name: str, case: Case) -> dict[str, Callable[[], object]]:
    """Return the library calls that do the same work, by name; none where a library has no such thing."""
    return _PEERS[name](**case) if name in _PEERS else {}


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
    return {"": {"qkv": qkv, "cos": cos, "sin": sin, "query_heads": H, "kv_heads": G, "lengths": None}}


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


def _linear_flops(case: Mapping[str, Any]) -> int:
    rows = case["x"].numel() // case["x"].shape[-1]
    weights = case["weight"].numel() + sum(path[0].numel() + path[1].numel() for path in case["paths"])
    return 2 * rows * weights


def _attention_flops(case: Mapping[str, Any]) -> int:
    B, T, H, K = case["q"].shape
    return 4 * B * H * T * case["k"].shape[1] * K


def _packed_flops(case: Mapping[str, Any]) -> int:
    B, T, _, K = case["qkv"].shape
    return 4 * B * case["query_heads"] * T * T * K


def _rmsnorm_peers(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> dict[str, Callable[[], object]]:
    return {"torch add, rms_norm": lambda: F.rms_norm(x + residual, weight.shape, weight, eps)}


def _swiglu_peers(gate_up: Tensor) -> dict[str, Callable[[], object]]:
    gate, up = gate_up.chunk(2, dim=-1)
    return {"torch silu, mul": lambda: F.silu(gate) * up}


def _attention_peers(q: Tensor, k: Tensor, v: Tensor, **_: object) -> dict[str, Callable[[], object]]:
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))

    def with_kernel(backend: SDPBackend) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)

    out: dict[str, Callable[[], object]] = {"sdpa as torch chooses": lambda: F.scaled_dot_product_attention(q, k, v, enable_gqa=True)}
    if q.is_cuda:
        out["sdpa flash"] = lambda: with_kernel(SDPBackend.FLASH_ATTENTION)
        out["sdpa cudnn"] = lambda: with_kernel(SDPBackend.CUDNN_ATTENTION)
    return out


def _packed_peers(qkv: Tensor, cos: Tensor, sin: Tensor, query_heads: int, kv_heads: int, **_: object) -> dict[str, Callable[[], object]]:
    # transformers multiplies in the model's dtype with tables of the whole width.
    whole_cos, whole_sin = (torch.cat((table, table), -1).to(qkv.dtype)[:, None] for table in (cos, sin))

    def turned(x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        return x * whole_cos + torch.cat((-second, first), -1) * whole_sin

    def run(choose: Callable[[dict], Callable[[], object]]) -> object:
        q, k, v = qkv.split((query_heads, kv_heads, kv_heads), dim=2)
        return choose(_attention_peers(turned(q), turned(k), v))()

    names = _attention_peers(*qkv.split((query_heads, kv_heads, kv_heads), dim=2))
    return {f"torch rotary, {name}": lambda name=name: run(lambda peers: peers[name]) for name in names}


def _linear_peers(x: Tensor, weight: Tensor, bias: Tensor | None, paths: tuple) -> dict[str, Callable[[], object]]:
    return {"F.linear, merged weight": lambda: F.linear(x, weight, bias)}


def _chosen(logits: Tensor, count: int) -> Tensor:
    values, ids = torch.topk(logits, count, dim=-1)
    drawn = torch.multinomial(torch.softmax(values.float() / 0.7, -1), 1)
    return ids.gather(1, drawn)


def _choose_peers(logits: Tensor, max_top_k: int, **_: object) -> dict[str, Callable[[], object]]:
    return {"torch topk, softmax, multinomial": lambda: _chosen(logits, max_top_k)}


def _head_peers(rows: Tensor, weight: Tensor, max_top_k: int, **_: object) -> dict[str, Callable[[], object]]:
    return {"F.linear, topk, softmax, multinomial": lambda: _chosen(F.linear(rows, weight), max_top_k)}


_CASES: dict[str, Callable[[Setting], dict[str, Case]]] = {
    "add_rmsnorm": _add_rmsnorm,
    "rotary": _rotary,
    "swiglu": _swiglu,
    "attention": _attention,
    "packed_attention": _packed_attention,
    "lora_linear": _lora_linear,
    "choose_token": _choose_token,
    "lm_head": _lm_head,
    "renoise": _renoise,
}
_FLOPS: dict[str, Callable[[Mapping[str, Any]], int]] = {
    "attention": _attention_flops,
    "packed_attention": _packed_flops,
    "lora_linear": _linear_flops,
    "lm_head": lambda case: 2 * case["rows"].shape[0] * case["weight"].numel(),
}
_PEERS: dict[str, Callable[..., dict[str, Callable[[], object]]]] = {
    "add_rmsnorm": _rmsnorm_peers,
    "swiglu": _swiglu_peers,
    "attention": _attention_peers,
    "packed_attention": _packed_peers,
    "lora_linear": _linear_peers,
    "choose_token": _choose_peers,
    "lm_head": _head_peers,
}
