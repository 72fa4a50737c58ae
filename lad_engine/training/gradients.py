"""The model's ops with hand-written backward passes: on CPU, autograd's slices, fills and concatenations cost as much memory traffic
as the products between them. Values equal the references' up to fp32 rounding; 16-bit inputs keep the reference and autograd."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def differentiable(ops: Any) -> Any:
    """Return `ops` with add_rmsnorm, rotary, swiglu and lora_linear that carry their own backward pass (fp32 only), and what is made of
    these: packed_attention and gate_up."""

    def add_rmsnorm(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float = 1e-5) -> tuple[Tensor, Tensor]:
        # A norm that is trained itself needs the gradient of its weight, which autograd has.
        if x.dtype != torch.float32 or weight.requires_grad:
            return ops.add_rmsnorm(x, residual, weight, eps)
        h = x if residual is None else x + residual
        return _Norm.apply(h, weight, eps)

    def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return ops.rotary(x, cos, sin) if x.dtype != torch.float32 else _Rotation.apply(x, cos[:, None], sin[:, None])

    def swiglu(gate_up: Tensor) -> Tensor:
        return ops.swiglu(gate_up) if gate_up.dtype != torch.float32 else _SwiGLU.apply(gate_up)

    def lora_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, paths: Sequence[Any] = ()) -> Tensor:
        if x.dtype != torch.float32 or not paths:
            return ops.lora_linear(x, weight, bias, paths)
        a, b, scales, starts, stops = zip(*paths, strict=True)
        return _LoraLinear.apply(x, weight, bias, tuple(zip(starts, stops, scales, strict=True)), *a, *b)

    def packed_attention(qkv: Tensor, cos: Tensor, sin: Tensor, query_heads: int, kv_heads: int, lengths: Tensor | None = None) -> Tensor:
        # split, not slices: its backward pass writes the pieces into one buffer.
        positional, v = qkv.split((query_heads + kv_heads, kv_heads), dim=2)
        q, k = rotary(positional, cos, sin).split((query_heads, kv_heads), dim=2)
        return ops.attention(q, k, v, lengths)

    def gate_up(x: Tensor, weight: Tensor) -> Tensor:
        return swiglu(lora_linear(x, weight))

    own = (add_rmsnorm, rotary, swiglu, lora_linear, packed_attention, gate_up)
    return dataclasses.replace(ops, **{function.__name__: function for function in own})


class _Norm(torch.autograd.Function):
    """(h * r * w, h) with r = rsqrt(mean(h^2) + eps);  dh += r (g w) - h r^3 mean(g w h)."""

    @staticmethod
    def forward(ctx, h, weight, eps):
        rate = torch.rsqrt(torch.linalg.vecdot(h, h).div_(h.shape[-1]).add_(eps)).unsqueeze(-1)
        ctx.save_for_backward(h, weight, rate)
        return (h * rate).mul_(weight), h.view_as(h)

    @staticmethod
    def backward(ctx, gradient, gradient_h):
        h, weight, rate = ctx.saved_tensors
        out = gradient * weight
        pull = torch.linalg.vecdot(out, h).unsqueeze(-1).mul_(rate**3).div_(-h.shape[-1])
        out.mul_(rate).addcmul_(h, pull)
        return out if gradient_h is None else out.add_(gradient_h), None, None


class _Rotation(torch.autograd.Function):
    """A rotation; its backward pass turns the other way."""

    @staticmethod
    def forward(ctx, x, cos, sin):
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin, -1.0)

    @staticmethod
    def backward(ctx, gradient):
        return _rotate(gradient, *ctx.saved_tensors, 1.0), None, None


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, sign: float) -> Tensor:
    half = x.shape[-1] // 2
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    torch.mul(x[..., :half], cos, out=out[..., :half]).addcmul_(x[..., half:], sin, value=sign)
    torch.mul(x[..., half:], cos, out=out[..., half:]).addcmul_(x[..., :half], sin, value=-sign)
    return out


class _SwiGLU(torch.autograd.Function):
    """silu(g) u; silu is computed again in the backward pass rather than kept."""

    @staticmethod
    def forward(ctx, gate_up):
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        return torch.nn.functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx, gradient):
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        out = torch.empty_like(gate_up)
        to_gate, to_up = out.chunk(2, dim=-1)
        torch.mul(gradient, torch.nn.functional.silu(gate), out=to_up)
        torch.ops.aten.silu_backward.grad_input(gradient * up, gate, grad_input=to_gate)
        return out


class _LoraLinear(torch.autograd.Function):
    """x W^T + bias with scale * (x A^T) B^T added to each path's rows; W and bias stay frozen. All A act in one product."""

    @staticmethod
    def forward(ctx, x, weight, bias, places, *pairs):
        flat = x.reshape(-1, x.shape[-1])
        a, b = torch.cat(pairs[: len(places)]), pairs[len(places) :]
        low = flat @ a.T
        y = torch.nn.functional.linear(flat, weight, bias)
        for (start, stop, scale), part, wide in zip(places, _parts(low, b), b, strict=True):
            y[:, start:stop].addmm_(part, wide.T, alpha=scale)
        ctx.places = places
        ctx.save_for_backward(flat, weight, a, low, *b)
        # No view of rows: the loss writes over the head's logits, which autograd forbids for a view made here.
        return y if x.dim() == 2 else y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx, gradient):
        flat, weight, a, low, *b = ctx.saved_tensors
        slope = gradient.reshape(-1, gradient.shape[-1])
        to_low, to_b = torch.empty_like(low), []
        for (start, stop, scale), part, target, wide in zip(ctx.places, _parts(low, b), _parts(to_low, b), b, strict=True):
            rows = slope[:, start:stop]
            torch.mm(rows, wide, out=target).mul_(scale)
            to_b.append(torch.mm(rows.T, part).mul_(scale))
        to_a = torch.mm(to_low.T, flat).split([wide.shape[1] for wide in b])
        to_x = torch.mm(slope, weight).addmm_(to_low, a).view(*gradient.shape[:-1], -1) if ctx.needs_input_grad[0] else None
        return to_x, None, None, None, *to_a, *to_b


def _parts(low: Tensor, b: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return low.split([wide.shape[1] for wide in b], dim=1)
