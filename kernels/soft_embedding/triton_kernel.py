"""Probabilities in one kernel, their product with the table in another, a chunk of rows at a time.

The first kernel makes the random scores of a row twice in registers, once for their sum and once for p, and writes p alone, in the
table's dtype, to a chunk that stays in the L2 cache. One kernel that multiplied at once would draw all scores again for every tile of
the width: a normal number costs some 40 instructions, as much as the products of 2,000 columns on tensor cores.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ahead_of_time import ARCHITECTURES, Compilation
from ..device_math import loop_bound
from ..random.device import normals_at
from .reference import check

LOG2_E = tl.constexpr(1.4426950408889634)
# Rows whose probabilities exist at once: 33 MB in 16 bits for a vocabulary of 32,000, within an H200's L2.
ROWS_PER_CHUNK = 512
# In elements: the multiple on which a Triton launch specialises.
ALIGNMENT = 16


def launch_config(element_bytes: int, is_aligned: bool, architecture: int) -> dict[str, int]:
    """Tile of the product on sm_`architecture`; is_aligned: every row starts at a multiple of 16 elements."""
    if element_bytes == 4:
        return {"BLOCK_M": 32, "BLOCK_D": 64, "BLOCK_V": 16, "num_warps": 4, "num_stages": 2}
    if is_aligned and architecture >= 90:
        return {"BLOCK_M": 128, "BLOCK_D": 128, "BLOCK_V": 64, "num_warps": 8, "num_stages": 4}
    return {"BLOCK_M": 64, "BLOCK_D": 128, "BLOCK_V": 32, "num_warps": 4, "num_stages": 3}


def row_config() -> dict[str, int]:
    """Ids of a row at a time: two calls of the generator per thread."""
    return {"BLOCK": 2048, "num_warps": 8}


@triton.jit
def _scores(noise_ptr, first, token, shift, spread, seed, position, step, purpose, V, IS_DRAWN: tl.constexpr, BLOCK: tl.constexpr):
    """Return s log2(e) of the ids [first, first + BLOCK), -inf from V on."""
    offs_v = first + tl.arange(0, BLOCK)
    if IS_DRAWN:
        z = normals_at(seed, position, step, purpose, first, BLOCK)
    else:
        z = tl.load(noise_ptr + offs_v, mask=offs_v < V, other=0.0)
    scores = z * spread + tl.where(offs_v == token, shift, 0.0)
    return tl.where(offs_v < V, scores * LOG2_E, float("-inf"))


@triton.jit
def _previous(previous_ptr, first, V, BLOCK: tl.constexpr):
    offs_v = first + tl.arange(0, BLOCK)
    return tl.load(previous_ptr + offs_v, mask=offs_v < V, other=float("-inf")).to(tl.float32) * LOG2_E


@triton.jit
def _probability_kernel(
    tokens_ptr, shift_ptr, spread_ptr, seeds_ptr, positions_ptr, steps_ptr, previous_ptr, noise_ptr, out_ptr,
    stride_tokens, stride_shift, stride_spread, stride_seeds, stride_positions, stride_steps, stride_previous, stride_noise, stride_out,
    V, purpose,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    token = tl.load(tokens_ptr + row * stride_tokens)
    shift = tl.load(shift_ptr + row * stride_shift)
    spread = tl.load(spread_ptr + row * stride_spread)
    seed = tl.load(seeds_ptr + row * stride_seeds)
    position = tl.load(positions_ptr + row * stride_positions)
    step = tl.load(steps_ptr + row * stride_steps)
    IS_DRAWN: tl.constexpr = noise_ptr is None
    HAS_PREVIOUS: tl.constexpr = previous_ptr is not None
    if not IS_DRAWN:
        noise_ptr += row * stride_noise
    if HAS_PREVIOUS:
        previous_ptr += row * stride_previous
    out_ptr += row * stride_out
    top = tl.full((), float("-inf"), tl.float32)
    mass = tl.full((), 0.0, tl.float32)
    old_top = tl.full((), float("-inf"), tl.float32)
    old_mass = tl.full((), 0.0, tl.float32)
    for first in tl.range(0, loop_bound(V), BLOCK):
        scores = _scores(noise_ptr, first, token, shift, spread, seed, position, step, purpose, V, IS_DRAWN, BLOCK)
        new_top = tl.maximum(top, tl.max(scores, 0))
        mass = mass * tl.exp2(top - new_top) + tl.sum(tl.exp2(scores - new_top), 0)
        top = new_top
        if HAS_PREVIOUS:
            old = _previous(previous_ptr, first, V, BLOCK)
            new_top = tl.maximum(old_top, tl.max(old, 0))
            # A block of forbidden ids alone has no mass, and no NaN either.
            base = tl.where(new_top == float("-inf"), 0.0, new_top)
            old_mass = old_mass * tl.exp2(old_top - base) + tl.sum(tl.exp2(old - base), 0)
            old_top = new_top
    share = 1.0 / mass
    old_share = 0.0
    if HAS_PREVIOUS:
        share = 0.5 / mass
        old_share = 0.5 / old_mass
    for first in tl.range(0, loop_bound(V), BLOCK):
        scores = _scores(noise_ptr, first, token, shift, spread, seed, position, step, purpose, V, IS_DRAWN, BLOCK)
        p = tl.exp2(scores - top) * share
        if HAS_PREVIOUS:
            p += tl.exp2(_previous(previous_ptr, first, V, BLOCK) - old_top) * old_share
        offs_v = first + tl.arange(0, BLOCK)
        # From V to the end of the row zeros, so that the product reads whole vectors.
        tl.store(out_ptr + offs_v, p.to(out_ptr.dtype.element_ty), mask=offs_v < stride_out)


@triton.jit
def _product_kernel(
    p_ptr, table_ptr, out_ptr,
    stride_p, stride_table, stride_out,
    N, V, D,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    offs_v = tl.arange(0, BLOCK_V)
    mask_m = offs_m < N
    mask_d = offs_d < D
    # Rows beyond the end read the last one and are not stored.
    p_ptr += tl.minimum(offs_m, N - 1).to(tl.int64)[:, None] * stride_p
    acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for first in tl.range(0, loop_bound(V), BLOCK_V):
        ids = first + offs_v
        # Along a row the limit is a multiple of 16 where the tensors allow it: any other would make every load one of a single value.
        p = tl.load(p_ptr + ids[None, :], mask=(ids < stride_p)[None, :], other=0.0)
        values = tl.load(
            table_ptr + ids.to(tl.int64)[:, None] * stride_table + offs_d[None, :], mask=(ids < V)[:, None] & mask_d[None, :], other=0.0
        )
        acc = tl.dot(p, values, acc, input_precision="ieee")
    out_ptrs = out_ptr + offs_m.to(tl.int64)[:, None] * stride_out + offs_d[None, :]
    tl.store(out_ptrs, acc.to(out_ptr.dtype.element_ty), mask=mask_m[:, None] & mask_d[None, :])


def soft_embedding(
    table: Tensor,
    tokens: Tensor,
    shift: Tensor,
    spread: Tensor,
    seeds: Tensor,
    positions: Tensor,
    steps: Tensor,
    purpose: int,
    previous: Tensor | None,
    noise: Tensor | None = None,
) -> Tensor:
    """Contract of the reference. Memory: `ROWS_PER_CHUNK` rows of probabilities in the table's dtype; a row's bits ignore the others."""
    check(table, tokens, shift, spread, seeds, positions, steps, previous, noise)
    table = table if table.stride(1) == 1 else table.contiguous()
    (V, D), N = table.shape, tokens.shape[0]
    out = torch.empty(N, D, dtype=table.dtype, device=table.device)
    # Rows of the chunk start at a multiple of 16 elements, whatever the vocabulary.
    width = triton.cdiv(V, ALIGNMENT) * ALIGNMENT
    p = torch.empty(min(N, ROWS_PER_CHUNK), width, dtype=table.dtype, device=table.device)
    is_aligned = not any(n % ALIGNMENT for n in (D, table.stride(0)))
    # The interpreter pays per operation, not per element: it runs the tiles of 16-bit types.
    config = launch_config(table.element_size() if table.is_cuda else 2, is_aligned, _architecture(table.device))
    with torch.cuda.device_of(table):
        for start in range(0, N, ROWS_PER_CHUNK):
            part = slice(start, start + ROWS_PER_CHUNK)
            columns = [column[part] for column in (tokens, shift, spread, seeds, positions, steps)]
            matrices = [None if matrix is None else matrix[part] for matrix in (previous, noise)]
            rows = columns[0].shape[0]
            _probability_kernel[(rows,)](
                *columns, *matrices, p,
                *(column.stride(0) for column in columns), *(0 if matrix is None else matrix.stride(0) for matrix in matrices), width,
                V, purpose, **row_config(),
            )  # fmt: skip
            grid = (triton.cdiv(rows, config["BLOCK_M"]), triton.cdiv(D, config["BLOCK_D"]))
            _product_kernel[grid](p, table, out[part], width, table.stride(0), D, rows, V, D, **config)
    return out


@functools.cache
def _architecture(device: torch.device) -> int:
    if device.type != "cuda":
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def ahead_of_time() -> list[Compilation]:
    """Mistral's and SmolLM2's shapes, an odd one, fp32; with and without logits and supplied noise."""
    out = []
    for dtype, V, D in (("*bf16", 32001, 4096), ("*bf16", 49152, 576), ("*fp16", 32769, 123), ("*fp32", 49152, 576)):
        width = triton.cdiv(V, ALIGNMENT) * ALIGNMENT
        for architecture in ARCHITECTURES:
            config = launch_config(4 if dtype == "*fp32" else 2, D % ALIGNMENT == 0, architecture)
            pointers = {"p_ptr": dtype, "table_ptr": dtype, "out_ptr": dtype}
            sizes = {"stride_p": width, "stride_table": D, "stride_out": D, "N": 256, "V": V, "D": D}
            out.append(Compilation(_product_kernel, {**pointers, **sizes, **config}, dtype != "*fp32", (architecture,)))
    columns = {"tokens_ptr": "*i64", "shift_ptr": "*fp32", "spread_ptr": "*fp32", "seeds_ptr": "*i64"}
    columns |= {"positions_ptr": "*i64", "steps_ptr": "*i64"}
    strides = dict.fromkeys(("stride_tokens", "stride_shift", "stride_spread", "stride_seeds", "stride_positions", "stride_steps"), 1)
    for dtype, previous, noise in (("*bf16", "*bf16", None), ("*bf16", None, None), ("*fp32", "*fp32", None), ("*bf16", "*bf16", "*fp32")):
        matrices = {"previous_ptr": previous, "noise_ptr": noise, "out_ptr": dtype}
        sizes = {"stride_previous": 32001, "stride_noise": 32001, "stride_out": 32016, "V": 32001, "purpose": 8}
        out.append(Compilation(_probability_kernel, {**columns, **matrices, **strides, **sizes, **row_config()}))
    return out
