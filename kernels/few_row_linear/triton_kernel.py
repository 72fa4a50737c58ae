"""A linear layer bound by reading its weight: a program keeps a few weight rows, and every SM several programs' loads in flight.

Short blocks of weight rows make enough programs for a GPU without splitting D, so nothing is summed across programs and the order of
every sum is fixed. The norm is recomputed by each program (its rows come from L2), the gate acts before anything is written. On sm_90 and
later the launch overlaps the kernel before it: the first tile of the weight is on its way when that one ends.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import cuda

from ..ahead_of_time import ARCHITECTURES, Compilation
from ..device_math import loop_bound
from ..tile_table import check_names
from .reference import check

# H100 and H200; other data-centre GPUs have 108 to 148.
MULTIPROCESSORS = 132
# Programs a multiprocessor needs to have about 32 KB of loads in flight, what its share of the bandwidth times the latency asks for.
PROGRAMS_EACH = 2
# Neighbouring products that one thread adds before they meet the running sum.
VECTOR = 8


def launch_config(M: int, outputs: int, D: int, element_bytes: int, is_gated: bool) -> dict[str, int]:
    """Tile for M rows and `outputs` columns of y (O, or O/2 where gated) over a width of D; a thread loads at most 64 16-bit weights."""
    # Every further row, and the second half of a gated weight, has sums of its own to keep: Triton 3.9 spills with wider tiles.
    widest = (2048 if M <= 2 and not is_gated else 1024) // element_bytes
    fair = max(1, outputs // (MULTIPROCESSORS * PROGRAMS_EACH))
    most = 4 if is_gated else 8
    block_o = min(most, 1 << (fair.bit_length() - 1))
    return {"BLOCK_O": block_o, "BLOCK_D": max(32, min(widest, triton.next_power_of_2(D))), "num_warps": 4}


def candidates(M: int, O: int, D: int, element_bytes: int) -> list[dict[str, int]]:  # noqa: E741
    """Configurations worth timing for a shape: the widths and blocks around the formula's, whose names do not say whether it is gated."""
    own = launch_config(M, O, D, element_bytes, False)
    blocks = {(block_o, block_d) for block_o in (1, 2, 4, 8) for block_d in (own["BLOCK_D"], max(32, own["BLOCK_D"] // 2))}
    tiles = [{"BLOCK_O": block_o, "BLOCK_D": block_d, "num_warps": 4} for block_o, block_d in sorted(blocks)]
    return [own, *(tile for tile in tiles if tile != own)]


@triton.jit
def _stream(x_ptr, residual_ptr, m, d, offs_d, D, stride_x_row, stride_residual_row):
    """Load `[BLOCK_D]` of row m of h = x + residual, rounded, widened to fp32."""
    mask_d = d + offs_d < D
    h = tl.load(x_ptr + m * stride_x_row + d + offs_d, mask=mask_d, other=0.0)
    if residual_ptr is not None:
        added = tl.load(residual_ptr + m * stride_residual_row + d + offs_d, mask=mask_d, other=0.0)
        h = (h.to(tl.float32) + added.to(tl.float32)).to(h.dtype)
    return h


@triton.jit
def _tile(weight_ptrs, d, offs_d, D, mask_o):
    return tl.load(weight_ptrs + d, mask=mask_o[:, None] & (d + offs_d < D)[None, :], other=0.0, eviction_policy="evict_first")


@triton.jit
def _products(w, n, BLOCK_O: tl.constexpr, BLOCK_D: tl.constexpr, VECTOR: tl.constexpr):
    """Return sums of VECTOR neighbouring products, `[BLOCK_O, BLOCK_D / VECTOR]`."""
    return tl.sum(tl.reshape(w.to(tl.float32) * n[None, :], [BLOCK_O, BLOCK_D // VECTOR, VECTOR]), axis=2)


@triton.jit
def _few_row_linear_kernel(
    x_ptr, weight_ptr, bias_ptr, residual_ptr, norm_ptr, y_ptr, h_ptr,
    stride_x_row, stride_residual_row, stride_weight_row,
    outputs, D, eps,
    ROWS: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_D: tl.constexpr, VECTOR: tl.constexpr,
    IS_GATED: tl.constexpr, OVERLAPS: tl.constexpr,
):  # fmt: skip
    offs_o = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    offs_d = tl.arange(0, BLOCK_D)
    mask_o = offs_o < outputs
    w_ptrs = weight_ptr + offs_o.to(tl.int64)[:, None] * stride_weight_row + offs_d[None, :]
    # The second half of a gated weight's rows, found the same way.
    up_ptrs = w_ptrs + outputs.to(tl.int64) * stride_weight_row
    if OVERLAPS:
        cuda.gdc_launch_dependents()
    w = _tile(w_ptrs, 0, offs_d, D, mask_o)
    up = w
    if IS_GATED:
        up = _tile(up_ptrs, 0, offs_d, D, mask_o)
    if OVERLAPS:
        # Nothing that another kernel wrote is read before this line.
        cuda.gdc_wait()

    rates = ()
    for m in tl.static_range(ROWS):
        squares = tl.zeros([BLOCK_D], tl.float32)
        if norm_ptr is not None:
            for d in tl.range(0, loop_bound(D), BLOCK_D):
                h = _stream(x_ptr, residual_ptr, m, d, offs_d, D, stride_x_row, stride_residual_row)
                if h_ptr is not None and tl.program_id(0) == 0:
                    tl.store(h_ptr + m * D + d + offs_d, h, mask=d + offs_d < D)
                squares += h.to(tl.float32) * h.to(tl.float32)
        rates += (tl.rsqrt(tl.sum(squares, axis=0) / D + eps),)

    gates = ()
    ups = ()
    for _ in tl.static_range(ROWS):
        gates += (tl.zeros([BLOCK_O, BLOCK_D // VECTOR], tl.float32),)
        ups += (tl.zeros([BLOCK_O, BLOCK_D // VECTOR], tl.float32),)
    for d in tl.range(0, loop_bound(D), BLOCK_D):
        new_gates = ()
        new_ups = ()
        for m in tl.static_range(ROWS):
            h = _stream(x_ptr, residual_ptr, m, d, offs_d, D, stride_x_row, stride_residual_row)
            n = h.to(tl.float32)
            if norm_ptr is not None:
                scale = tl.load(norm_ptr + d + offs_d, mask=d + offs_d < D, other=0.0).to(tl.float32)
                n = ((n * rates[m]).to(h.dtype).to(tl.float32) * scale).to(h.dtype).to(tl.float32)
            new_gates += (gates[m] + _products(w, n, BLOCK_O, BLOCK_D, VECTOR),)
            if IS_GATED:
                new_ups += (ups[m] + _products(up, n, BLOCK_O, BLOCK_D, VECTOR),)
            else:
                new_ups += (ups[m],)
        gates = new_gates
        ups = new_ups
        # One tile ahead of the products; the last load is masked out.
        w = _tile(w_ptrs, d + BLOCK_D, offs_d, D, mask_o)
        if IS_GATED:
            up = _tile(up_ptrs, d + BLOCK_D, offs_d, D, mask_o)

    dtype = y_ptr.dtype.element_ty
    for m in tl.static_range(ROWS):
        y = tl.sum(gates[m], axis=1)
        if bias_ptr is not None:
            y += tl.load(bias_ptr + offs_o, mask=mask_o, other=0.0).to(tl.float32)
        if IS_GATED:
            u = tl.sum(ups[m], axis=1)
            if bias_ptr is not None:
                u += tl.load(bias_ptr + outputs + offs_o, mask=mask_o, other=0.0).to(tl.float32)
            # The rounding points of the op swiglu.
            gate = y.to(dtype).to(tl.float32)
            silu = (gate / (1.0 + tl.exp(-gate))).to(dtype).to(tl.float32)
            y = silu * u.to(dtype).to(tl.float32)
        tl.store(y_ptr + m * outputs + offs_o, y.to(dtype), mask=mask_o)


def few_row_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    norm: Tensor | None = None,
    eps: float = 1e-5,
    is_gated: bool = False,
) -> tuple[Tensor, Tensor]:
    """Contract of the reference; from sm_90 on, the kernel launched just before this one must not write `weight`."""
    return _launch(x, weight, bias, residual, norm, eps, is_gated, None)


def configured(config: Mapping[str, int]) -> Callable[..., tuple[Tensor, Tensor]]:
    """Return `few_row_linear` with a measured tile in place of `launch_config`'s; ValueError where its names are not those."""
    check_names("few_row_linear=triton", config, launch_config(1, 1, 64, 2, False))

    def measured(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        residual: Tensor | None = None,
        norm: Tensor | None = None,
        eps: float = 1e-5,
        is_gated: bool = False,
    ) -> tuple[Tensor, Tensor]:
        return _launch(x, weight, bias, residual, norm, eps, is_gated, config)

    return measured


def _launch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    norm: Tensor | None,
    eps: float,
    is_gated: bool,
    measured: Mapping[str, int] | None,
) -> tuple[Tensor, Tensor]:
    check(x, weight, bias, residual, norm, is_gated)
    M, D = x.shape
    outputs = weight.shape[0] // 2 if is_gated else weight.shape[0]
    x, weight, residual, norm, bias = (t if t is None or t.stride(-1) == 1 else t.contiguous() for t in (x, weight, residual, norm, bias))
    y = torch.empty(M, outputs, dtype=x.dtype, device=x.device)
    h = x if residual is None else torch.empty(M, D, dtype=x.dtype, device=x.device)
    if y.numel():
        config = dict(measured or launch_config(M, outputs, D, x.element_size(), is_gated))
        if not x.is_cuda:
            # The interpreter pays per operation, not per element.
            config["BLOCK_O"] = 64
        overlaps = _overlaps(x.device)
        with torch.cuda.device_of(x):
            _few_row_linear_kernel[(triton.cdiv(outputs, config["BLOCK_O"]),)](
                x, weight, bias, residual, norm, y, None if residual is None else h,
                x.stride(0), 0 if residual is None else residual.stride(0), weight.stride(0), outputs, D, eps,
                ROWS=M, VECTOR=VECTOR, IS_GATED=is_gated, OVERLAPS=overlaps, **config, **({"launch_pdl": True} if overlaps else {}),
            )  # fmt: skip
    return y, h


@functools.cache
def _overlaps(device: torch.device) -> bool:
    """Whether a launch may begin before the kernel in front of it has ended (programmatic dependent launch, from sm_90 on)."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 9


def ahead_of_time() -> list[Compilation]:
    """The projections of Llama-3.2-1B and 3.1-8B everywhere; SmolLM2-135M, most rows, the head, fp16, fp32 and odd sizes on sm_90."""
    out = []
    for dtype, M, outputs, D, has_norm, is_gated, architectures in (
        ("*bf16", 1, 3072, 2048, True, False, ARCHITECTURES),
        ("*bf16", 1, 14336, 4096, True, True, ARCHITECTURES),
        ("*bf16", 8, 8192, 2048, True, True, ARCHITECTURES),
        ("*bf16", 1, 4096, 14336, False, False, (90,)),
        ("*bf16", 4, 128256, 4096, True, False, (90,)),
        ("*bf16", 1, 576, 576, False, False, (90,)),
        ("*fp16", 2, 960, 576, True, False, (90,)),
        ("*fp32", 8, 1536, 576, True, True, (90,)),
        ("*fp32", 1, 37, 123, False, False, (90,)),
    ):
        norm = dtype if has_norm else None
        pointers = {
            "x_ptr": dtype,
            "weight_ptr": dtype,
            "bias_ptr": None,
            "residual_ptr": norm,
            "norm_ptr": norm,
            "y_ptr": dtype,
            "h_ptr": norm,
        }
        sizes = {"stride_x_row": D, "stride_residual_row": D if has_norm else 0, "stride_weight_row": D, "outputs": outputs, "D": D}
        flags = {"eps": 1e-5, "ROWS": M, "VECTOR": VECTOR, "IS_GATED": is_gated}
        config = launch_config(M, outputs, D, 4 if dtype == "*fp32" else 2, is_gated)
        for architecture in architectures:
            arguments = {**pointers, **sizes, **flags, "OVERLAPS": architecture >= 90, **config}
            out.append(Compilation(_few_row_linear_kernel, arguments, architectures=(architecture,)))
    return out
