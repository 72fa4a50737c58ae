"""Head GEMM and scan in one kernel: a tile of logits leaves its best keys and its sum of exponentials, and is never in memory.

Tiles do not depend on the number of rows, so neither do a row's bits. Every tile keeps as many keys as may be asked for, so that the
merge is exact whatever the logits are; longer lists, and calls no list can answer, take the chunked library GEMM.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ahead_of_time import ARCHITECTURES, Compilation
from ..choose_token.device import LAST_ID, NO_KEY, inverse_scale, key_of, score_of, weight_of
from ..choose_token.device_scan import draw_from_keys, keep_largest, mass_after
from ..choose_token.triton_kernel import choose_token, pointers_and_strides
from ..device_math import loop_bound
from ..lora_linear.triton_kernel import lora_linear
from ..tile_table import check_names
from . import cublas_kernel
from .reference import check

# A candidate costs two reductions over every tile of logits, after the products; beyond this the chunked path is always cheaper.
MAX_CANDIDATES = 8
# In elements: the multiple on which a Triton launch specialises.
ALIGNMENT = 16
# Whole rows of logits that `invariant` holds at a time where no short list of keys answers.
FULL_ROWS = cublas_kernel.FULL_ROWS
TILES_WORTH_TIMING = (
    (64, 128, 64, 1, 4, 4),
    (64, 256, 64, 2, 8, 4),
    (128, 128, 64, 1, 8, 4),
    (128, 256, 64, 2, 8, 4),
)


def launch_config(element_bytes: int, is_aligned: bool, architecture: int) -> dict[str, int]:
    """Tile of the GEMM on sm_`architecture`; the accumulator is searched in PIECES, one after the other, which saves registers.

    is_aligned: every row starts at a multiple of 16 elements, so that it is copied to shared memory without passing through registers.

    No tile spills. Only data-centre GPUs from sm_90 to sm_110 get tiles of more than 99 KB, all the shared memory the others have.
    """
    if element_bytes == 4:
        # Without tensor cores the operands of a product live in registers, and larger tiles spill.
        return {"BLOCK_M": 32, "BLOCK_V": 64, "BLOCK_D": 16, "PIECES": 1, "num_warps": 4, "num_stages": 2}
    if is_aligned and 90 <= architecture < 100:
        return {"BLOCK_M": 128, "BLOCK_V": 256, "BLOCK_D": 64, "PIECES": 2, "num_warps": 8, "num_stages": 3}
    if is_aligned and 100 <= architecture < 120:
        # The accumulator comes back from tensor memory whole, whatever the pieces: the wider tile spills.
        return {"BLOCK_M": 128, "BLOCK_V": 128, "BLOCK_D": 64, "PIECES": 1, "num_warps": 8, "num_stages": 4}
    return {"BLOCK_M": 128, "BLOCK_V": 128, "BLOCK_D": 32, "PIECES": 1, "num_warps": 8, "num_stages": 3}


def candidates(D: int, element_bytes: int, architecture: int) -> list[dict[str, int]]:
    """Configurations worth timing for a shape; one that an architecture cannot hold fails at its launch."""
    own = launch_config(element_bytes, D % ALIGNMENT == 0, architecture)
    names = ("BLOCK_M", "BLOCK_V", "BLOCK_D", "PIECES", "num_warps", "num_stages")
    tiles = [dict(zip(names, tile, strict=True)) for tile in TILES_WORTH_TIMING] if element_bytes == 2 else []
    return [own, *(tile for tile in tiles if tile != own)]


@triton.jit
def _search(
    scores, offs_v, place, mask_m, inverse, bias_ids_ptr, bias_ptrs, stride_bias, keys_ptr, masses_ptr, V, M,
    K: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Store the K best keys of each row of `scores` `[BLOCK_M, width]`, and its mass relative to the best."""
    for m in tl.range(0, loop_bound(M)):
        bias_id = tl.load(bias_ids_ptr + m)
        if (bias_id >= tl.min(offs_v, 0)) & (bias_id <= tl.max(offs_v, 0)):
            bias = tl.load(bias_ptrs + m * stride_bias, mask=mask_m, other=0.0)
            scores = tl.where(offs_v[None, :] == bias_id, scores + bias[:, None], scores)
    scores = tl.where((offs_v < V)[None, :], scores, float("-inf"))
    top = tl.max(scores, 1)
    base = tl.where(top == float("-inf"), 0.0, top)
    mass = tl.sum(weight_of(scores, base[:, None], inverse[:, None]), 1)
    tl.store(masses_ptr + place, mass, mask=mask_m)
    offs_k = tl.arange(0, K)
    found = tl.full((BLOCK_M, K), NO_KEY, tl.int64)
    for k in tl.static_range(K):
        if k > 0:
            top = tl.max(scores, 1)
        token = tl.min(tl.where(scores == top[:, None], offs_v[None, :], LAST_ID), 1)
        # Minus zero equals zero, but its bits would order below.
        key = key_of(tl.where(top == 0.0, 0.0, top), token)
        found = tl.where(offs_k[None, :] == k, key[:, None], found)
        if k + 1 < K:
            scores = tl.where(offs_v[None, :] == token[:, None], float("-inf"), scores)
    tl.store(keys_ptr + place[:, None] * K + offs_k[None, :], found, mask=mask_m[:, None])


@triton.jit
def _head_kernel(
    rows_ptr, weight_ptr, temperature_ptr, bias_ids_ptr, bias_ptr, keys_ptr, masses_ptr,
    stride_rows, stride_weight, stride_temperature, stride_bias_row, stride_bias,
    N, V, M, pieces,
    D: tl.constexpr, K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr, PIECES: tl.constexpr,
):  # fmt: skip
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    first = tl.program_id(1) * BLOCK_V
    offs_v, offs_d = first + tl.arange(0, BLOCK_V), tl.arange(0, BLOCK_D)
    mask_m = offs_m < N
    # Rows and ids that do not exist repeat the last: only the width needs a mask.
    offs_m = tl.minimum(offs_m, N - 1).to(tl.int64)
    rows_ptrs = rows_ptr + (offs_m[:, None] * stride_rows + offs_d[None, :])
    weight_ptrs = weight_ptr + (tl.minimum(offs_v, V - 1).to(tl.int64)[None, :] * stride_weight + offs_d[:, None])
    acc = tl.zeros((BLOCK_M, BLOCK_V), tl.float32)
    for d in tl.range(0, D, BLOCK_D):
        if D % BLOCK_D == 0:
            x = tl.load(rows_ptrs + d)
            w = tl.load(weight_ptrs + d)
        else:
            x = tl.load(rows_ptrs + d, mask=(d + offs_d < D)[None, :], other=0.0)
            w = tl.load(weight_ptrs + d, mask=(d + offs_d < D)[:, None], other=0.0)
        acc = tl.dot(x, w, acc, input_precision="ieee")
    # The logits are rounded as the library would store them.
    scores = acc.to(rows_ptr.dtype.element_ty).to(tl.float32)
    inverse = inverse_scale(tl.load(temperature_ptr + offs_m * stride_temperature))
    bias_ptrs = bias_ptr + offs_m * stride_bias_row
    place = offs_m * pieces + tl.program_id(1) * PIECES
    if PIECES == 1:
        _search(
            scores, offs_v, place, mask_m, inverse, bias_ids_ptr, bias_ptrs, stride_bias, keys_ptr, masses_ptr, V, M, K, BLOCK_M
        )  # fmt: skip
    else:
        HALF: tl.constexpr = BLOCK_V // 2
        low, high = tl.split(tl.permute(tl.reshape(scores, (BLOCK_M, 2, HALF)), (0, 2, 1)))
        offs_h = first + tl.arange(0, HALF)
        _search(
            low, offs_h, place, mask_m, inverse, bias_ids_ptr, bias_ptrs, stride_bias, keys_ptr, masses_ptr, V, M, K, BLOCK_M
        )  # fmt: skip
        _search(
            high, offs_h + HALF, place + 1, mask_m, inverse, bias_ids_ptr, bias_ptrs, stride_bias, keys_ptr, masses_ptr, V, M, K, BLOCK_M
        )  # fmt: skip


@triton.jit
def _choose_kernel(
    keys_ptr, masses_ptr, uniforms_ptr, temperature_ptr, top_k_ptr, top_p_ptr, drop_crossing_ptr, full_confidence_ptr,
    token_ptr, confidence_ptr,
    stride_uniforms, stride_temperature, stride_top_k, stride_top_p, stride_drop, stride_full,
    pieces,
    K: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    offs_k = tl.arange(0, K)
    inverse = inverse_scale(tl.load(temperature_ptr + row * stride_temperature))
    kept = offs_k.to(tl.int64) + NO_KEY
    top = tl.full((), float("-inf"), tl.float32)
    mass = tl.full((), 0.0, tl.float64)
    for first in tl.range(0, loop_bound(pieces), BLOCK):
        offs_p = row * pieces + first + tl.arange(0, BLOCK)
        mask_p = first + tl.arange(0, BLOCK) < pieces
        keys = tl.load(keys_ptr + offs_p[:, None] * K + offs_k[None, :], mask=mask_p[:, None], other=NO_KEY)
        masses = tl.load(masses_ptr + offs_p, mask=mask_p, other=0.0)
        tops = tl.where(mask_p, score_of(tl.max(keys, 1) >> 32), float("-inf"))
        new_top = tl.maximum(top, tl.max(tops, 0))
        base = tl.where(new_top == float("-inf"), 0.0, new_top)
        block_mass = tl.sum((masses * weight_of(tops, base, inverse)).to(tl.float64), 0)
        mass = mass_after(mass, top, new_top, block_mass, inverse)
        kept = keep_largest(kept, tl.reshape(keys, (BLOCK * K,)))
        top = new_top
    draw_from_keys(
        kept, top, mass, row, uniforms_ptr, temperature_ptr, top_k_ptr, top_p_ptr, drop_crossing_ptr, full_confidence_ptr,
        token_ptr, confidence_ptr,
        stride_uniforms, stride_temperature, stride_top_k, stride_top_p, stride_drop, stride_full, K,
    )  # fmt: skip


def lm_head(
    rows: Tensor,
    weight: Tensor,
    uniforms: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    drop_crossing: Tensor,
    full_confidence: Tensor,
    bias_ids: Tensor,
    bias_values: Tensor,
    *,
    max_top_k: int,
    samples_all: bool,
) -> tuple[Tensor, Tensor]:
    """Contract of the reference. Memory: K keys of 8 bytes and a mass per row and 128 ids, K = max_top_k rounded up to a power of two.

    max_top_k of 0 or above MAX_CANDIDATES, and samples_all, take the library's GEMM and its memory instead.
    """
    rule = (uniforms, temperature, top_k, top_p, drop_crossing, full_confidence)
    if not is_in_one_kernel(max_top_k, samples_all):
        return cublas_kernel.lm_head(rows, weight, *rule, bias_ids, bias_values, max_top_k=max_top_k, samples_all=samples_all)
    return _launch(rows, weight, rule, bias_ids, bias_values, max_top_k)


def invariant(
    rows: Tensor,
    weight: Tensor,
    uniforms: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    drop_crossing: Tensor,
    full_confidence: Tensor,
    bias_ids: Tensor,
    bias_values: Tensor,
    *,
    max_top_k: int,
    samples_all: bool,
) -> tuple[Tensor, Tensor]:
    """Contract of the reference; a row has the same bits whatever rows are beside it, also where whole rows of logits are needed."""
    rule = (uniforms, temperature, top_k, top_p, drop_crossing, full_confidence)
    if is_in_one_kernel(max_top_k, samples_all):
        return _launch(rows, weight, rule, bias_ids, bias_values, max_top_k)
    check(rows, weight, bias_ids, bias_values)
    token = torch.empty(rows.shape[0], dtype=torch.int64, device=rows.device)
    confidence = torch.empty(rows.shape[0], dtype=torch.float32, device=rows.device)
    for first in range(0, rows.shape[0], FULL_ROWS):
        part = slice(first, first + FULL_ROWS)
        columns = (*(column[part] for column in rule), bias_ids, bias_values[part])
        logits = lora_linear(rows[part], weight)
        token[part], confidence[part] = choose_token(logits, *columns, max_top_k=max_top_k, samples_all=samples_all)
    return token, confidence


def configured(config: Mapping[str, int]) -> Callable[..., tuple[Tensor, Tensor]]:
    """Return `lm_head` with a measured tile in place of `launch_config`'s; ValueError where its names are not those."""
    check_names("lm_head=triton", config, launch_config(2, True, 90))

    def measured(
        rows: Tensor,
        weight: Tensor,
        uniforms: Tensor,
        temperature: Tensor,
        top_k: Tensor,
        top_p: Tensor,
        drop_crossing: Tensor,
        full_confidence: Tensor,
        bias_ids: Tensor,
        bias_values: Tensor,
        *,
        max_top_k: int,
        samples_all: bool,
    ) -> tuple[Tensor, Tensor]:
        rule = (uniforms, temperature, top_k, top_p, drop_crossing, full_confidence)
        if not is_in_one_kernel(max_top_k, samples_all):
            return cublas_kernel.lm_head(rows, weight, *rule, bias_ids, bias_values, max_top_k=max_top_k, samples_all=samples_all)
        return _launch(rows, weight, rule, bias_ids, bias_values, max_top_k, config)

    return measured


def is_in_one_kernel(max_top_k: int, samples_all: bool) -> bool:
    """Whether a call is answered from the keys of its tiles, without logits in memory."""
    return 0 < max_top_k <= MAX_CANDIDATES and not samples_all


def _launch(
    rows: Tensor,
    weight: Tensor,
    rule: tuple[Tensor, ...],
    bias_ids: Tensor,
    bias_values: Tensor,
    max_top_k: int,
    config: Mapping[str, int] | None = None,
) -> tuple[Tensor, Tensor]:
    check(rows, weight, bias_ids, bias_values)
    N, D = rows.shape
    V = weight.shape[0]
    rows, weight = (t if t.stride(1) == 1 else t.contiguous() for t in (rows, weight))
    token = torch.empty(N, dtype=torch.int64, device=rows.device)
    confidence = torch.empty(N, dtype=torch.float32, device=rows.device)
    if not N:
        return token, confidence
    config = config or _own_config(rows, weight)
    K = triton.next_power_of_2(min(max_top_k, V))
    tiles = triton.cdiv(V, config["BLOCK_V"])
    pieces = tiles * config["PIECES"]
    keys = torch.empty(N, pieces, K, dtype=torch.int64, device=rows.device)
    masses = torch.empty(N, pieces, dtype=torch.float32, device=rows.device)
    strides = tuple(column.stride(0) for column in rule)
    with torch.cuda.device_of(rows):
        _head_kernel[(triton.cdiv(N, config["BLOCK_M"]), tiles)](
            rows, weight, rule[1], bias_ids.contiguous(), bias_values, keys, masses,
            rows.stride(0), weight.stride(0), strides[1], *bias_values.stride(), N, V, bias_ids.shape[0], pieces, D=D, K=K, **config,
        )  # fmt: skip
        _choose_kernel[(N,)](keys, masses, *rule, token, confidence, *strides, pieces, **choose_config(K))
    return token, confidence


def _own_config(rows: Tensor, weight: Tensor) -> dict[str, int]:
    is_aligned = not any(n % ALIGNMENT for n in (rows.shape[1], rows.stride(0), weight.stride(0)))
    # The interpreter pays per operation, not per element: it runs the tiles of 16-bit types.
    return launch_config(rows.element_size() if rows.is_cuda else 2, is_aligned, _architecture(rows.device))


def choose_config(K: int) -> dict[str, int]:
    """Tile of the merge: 2048 keys at a time, 16 per thread; left to itself the assembler would settle for 80 registers and spill."""
    return {"K": K, "BLOCK": 2048 // K, "num_warps": 4, "maxnreg": 128}


@functools.cache
def _architecture(device: torch.device) -> int:
    if device.type != "cuda":
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def ahead_of_time() -> list[Compilation]:
    """The widths and vocabularies of Llama 3 and SmolLM2, every number of candidates, fp32 and a width nothing divides; and version 1."""
    shapes = (
        # dtype, N, V, D, K
        *(("*bf16", 256, 128256, 2048, K) for K in (1, 4, MAX_CANDIDATES)),
        ("*fp16", 17, 49157, 577, 2),
        ("*fp32", 17, 49152, 576, 4),
    )
    out = [_compilation(*shape, architecture) for shape in shapes for architecture in ARCHITECTURES]
    for K in (1, MAX_CANDIDATES):
        arguments = {**pointers_and_strides("*bf16"), "masses_ptr": "*fp32", "pieces": 1002, **choose_config(K)}
        named = {name: arguments[name] for name in (*_choose_kernel.arg_names, "num_warps", "maxnreg")}
        out.append(Compilation(_choose_kernel, named))
    return [*out, *cublas_kernel.ahead_of_time()]


def _compilation(dtype: str, N: int, V: int, D: int, K: int, architecture: int) -> Compilation:
    config = launch_config(4 if dtype == "*fp32" else 2, D % ALIGNMENT == 0, architecture)
    pieces = triton.cdiv(V, config["BLOCK_V"]) * config["PIECES"]
    common = pointers_and_strides(dtype)
    pointers = {"rows_ptr": dtype, "weight_ptr": dtype, "masses_ptr": "*fp32"}
    pointers |= {name: common[name] for name in ("temperature_ptr", "bias_ids_ptr", "bias_ptr", "keys_ptr")}
    strides = {"stride_rows": D, "stride_weight": D, "stride_temperature": 0, "stride_bias_row": 0, "stride_bias": 1}
    sizes = {"N": N, "V": V, "M": 2, "pieces": pieces, "D": D, "K": K}
    return Compilation(_head_kernel, {**pointers, **strides, **sizes, **config}, dtype != "*fp32", (architecture,))
