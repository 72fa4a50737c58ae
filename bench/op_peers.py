"""The library calls that do the work of an op, for the ops that have one."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.op_cases import Case


def op_peers(name: str, case: Case) -> dict[str, Callable[[], object]]:
    """Return the library calls that do the same work, by name; none where a library has no such thing. Attention's see no lengths."""
    return _PEERS[name](**case) if name in _PEERS else {}


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


def _linear_peers(x: Tensor, weight: Tensor, bias: Tensor | None = None, **_: object) -> dict[str, Callable[[], object]]:
    return {"F.linear, merged weight": lambda: F.linear(x, weight, bias)}


def _gate_up_peers(x: Tensor, weight: Tensor) -> dict[str, Callable[[], object]]:
    def run() -> Tensor:
        gate, up = F.linear(x, weight).chunk(2, dim=-1)
        return F.silu(gate) * up

    return {"F.linear, silu, mul": run}


def _decode_peers(qkv: Tensor, keys: Tensor, values: Tensor, **_: object) -> dict[str, Callable[[], object]]:
    heads = qkv.shape[1] - 2 * keys.shape[2]
    q, k, v = qkv[:, :heads, None], keys.transpose(1, 2), values.transpose(1, 2)
    return {"sdpa alone, cache full": lambda: F.scaled_dot_product_attention(q, k, v, enable_gqa=True)}


def _chosen(logits: Tensor, count: int) -> Tensor:
    values, ids = torch.topk(logits, count, dim=-1)
    weights = torch.softmax(values.float() / 0.7, -1)
    if not logits.is_cuda:
        return ids.gather(1, torch.multinomial(weights, 1))
    # The race multinomial runs, without its checks on the host: no graph holds those, and ours is timed in one.
    return ids.gather(1, (weights / torch.empty_like(weights).exponential_()).argmax(-1, keepdim=True))


def _choose_peers(logits: Tensor, max_top_k: int, **_: object) -> dict[str, Callable[[], object]]:
    return {"torch topk, softmax, multinomial": lambda: _chosen(logits, max_top_k)}


def _head_peers(rows: Tensor, weight: Tensor, max_top_k: int, **_: object) -> dict[str, Callable[[], object]]:
    return {"F.linear, topk, softmax, multinomial": lambda: _chosen(F.linear(rows, weight), max_top_k)}


_PEERS: dict[str, Callable[..., dict[str, Callable[[], object]]]] = {
    "add_rmsnorm": _rmsnorm_peers,
    "swiglu": _swiglu_peers,
    "attention": _attention_peers,
    "packed_attention": _packed_peers,
    "lora_linear": _linear_peers,
    "gate_up": _gate_up_peers,
    "few_row_linear": _linear_peers,
    "decode_attention": _decode_peers,
    "choose_token": _choose_peers,
    "lm_head": _head_peers,
}
