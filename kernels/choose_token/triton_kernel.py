"""Token choice: one pass over the logits keeps the few best keys and the running sum of exponentials of each split of a row.

A second, small kernel merges the splits, filters and draws. What the list of keys cannot answer takes further passes over the logits.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from ..ahead_of_time import Compilation
from .device_passes import filtered_kernel, unfiltered_kernel
from .device_scan import choose_kernel, scan_kernel
from .reference import check

MAX_BLOCK = 4096
MAX_SPLITS = 16
TILES_PER_SPLIT = 4
# A candidate costs a maximum over the tile; beyond this many, passes over the row are fewer than maxima.
MAX_CANDIDATES = 128
LARGEST_VOCABULARY = 2**31 - MAX_BLOCK


def launch_config(V: int, least_tiles: int = TILES_PER_SPLIT) -> dict[str, int]:
    """Tiles and splits of a row of V logits; nothing else decides, so that a row has the same bits whatever it is batched with.

    Left to itself the assembler would settle for 80 registers on sm_80 and spill (Triton 3.9); the limit lets it take 95.
    """
    block = max(128, min(MAX_BLOCK, triton.next_power_of_2(V)))
    tiles = triton.cdiv(V, block)
    tiles_per_split = max(least_tiles, triton.cdiv(tiles, MAX_SPLITS))
    splits = triton.cdiv(tiles, tiles_per_split)
    tile = {"BLOCK": block, "num_warps": max(1, block // 512), "maxnreg": 128}
    return {**tile, "splits": splits, "split_length": tiles_per_split * block}


def choose_token(
    logits: Tensor,
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
    """Contract of the reference; also a ValueError where V exceeds LARGEST_VOCABULARY."""
    check(logits, bias_ids, bias_values)
    N, V = logits.shape
    if V > LARGEST_VOCABULARY:
        raise ValueError(f"choose_token: logits is {(N, V)}, expected at most {LARGEST_VOCABULARY} columns.")
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    bias_ids = bias_ids.contiguous()
    device = logits.device
    token = torch.empty(N, dtype=torch.int64, device=device)
    confidence = torch.empty(N, dtype=torch.float32, device=device)
    if not N:
        return token, confidence
    config = launch_config(V)
    splits, split_length = config.pop("splits"), config.pop("split_length")
    has_candidates = 0 < max_top_k <= MAX_CANDIDATES
    K = triton.next_power_of_2(min(max_top_k, V)) if has_candidates else 1
    keys = torch.empty(N, splits, K, dtype=torch.int64, device=device)
    masses = torch.empty(N, splits, dtype=torch.float64, device=device)
    tops = torch.empty(N, dtype=torch.float32, device=device)
    totals = torch.empty(N, dtype=torch.float64, device=device)
    rule = (uniforms, temperature, top_k, top_p, drop_crossing, full_confidence)
    strides = tuple(one.stride(0) for one in rule)
    bias_strides = bias_values.stride()
    with torch.cuda.device_of(logits):
        scan_kernel[(N, splits)](
            logits, temperature, bias_ids, bias_values, keys, masses,
            logits.stride(0), strides[1], *bias_strides, 0, V, bias_ids.shape[0], split_length, CONTINUES=False, K=K, **config,
        )  # fmt: skip
        choose_kernel[(N,)](
            keys, masses, *rule, tops, totals, token, confidence, *strides, splits, **choose_config(splits, K)
        )  # fmt: skip
        if not has_candidates:
            filtered_kernel[(N,)](
                logits, *rule, bias_ids, bias_values, tops, totals, token, confidence,
                logits.stride(0), *strides, *bias_strides, V, bias_ids.shape[0], **passes_config(V),
            )  # fmt: skip
        if samples_all:
            unfiltered_kernel[(N,)](
                logits, *rule[:4], bias_ids, bias_values, tops, token, confidence,
                logits.stride(0), *strides[:4], *bias_strides, V, bias_ids.shape[0], **passes_config(V),
            )  # fmt: skip
    return token, confidence


def choose_config(splits: int, K: int) -> dict[str, int]:
    """Tile of the merge: every key of a row at once, 8 to 16 per thread."""
    block = triton.next_power_of_2(splits)
    return {"K": K, "BLOCK_S": block, "num_warps": max(1, min(8, block * K // 256))}


def passes_config(V: int) -> dict[str, int | bool]:
    """Tile of the passes, one program per row: 8 values per thread; sums round as they are written.

    The assembler would settle for 48 registers and spill; the limit, which a block of 512 threads just has, lets it take 70.
    """
    block = max(128, min(MAX_BLOCK, triton.next_power_of_2(V)))
    return {"BLOCK": block, "num_warps": max(1, block // 256), "maxnreg": 128, "enable_fp_fusion": False}


def ahead_of_time() -> list[Compilation]:
    """Every kernel over the vocabularies of SmolLM2 and Llama 3, and one that nothing divides; few and many candidates."""
    out = []
    for dtype, V, M, counts in (("*bf16", 128256, 3, (1, 4, MAX_CANDIDATES)), ("*fp32", 49152, 1, (1,)), ("*fp16", 123, 2, (8,))):
        config = launch_config(V)
        splits, split_length = config.pop("splits"), config.pop("split_length")
        common = {**pointers_and_strides(dtype), "stride_logits_row": V, "start": 0, "stop": V, "V": V, "M": M}
        for K in counts:
            scan = {"split_length": split_length, "CONTINUES": False, "K": K}
            out.append(listed(scan_kernel, {**common, **scan, **config}))
            out.append(listed(choose_kernel, {**common, "splits": splits, **choose_config(splits, K)}))
        if dtype != "*fp16":
            out += [listed(kernel, {**common, **passes_config(V)}) for kernel in (filtered_kernel, unfiltered_kernel)]
    return out


def pointers_and_strides(dtype: str) -> dict[str, object]:
    """Return the example arguments every kernel of this op has in common."""
    pointers = {"logits_ptr": dtype, "bias_ids_ptr": "*i64", "bias_ptr": "*fp32", "keys_ptr": "*i64", "masses_ptr": "*fp64"}
    pointers |= dict.fromkeys(("uniforms_ptr", "temperature_ptr", "top_p_ptr", "tops_ptr", "confidence_ptr"), "*fp32")
    pointers |= {"top_k_ptr": "*i64", "drop_crossing_ptr": "*i1", "full_confidence_ptr": "*i1", "totals_ptr": "*fp64", "token_ptr": "*i64"}
    # A rule of one request is one number expanded over its rows.
    names = ("temperature", "top_k", "top_p", "drop", "full", "bias_row")
    return {**pointers, "stride_uniforms": 1, **{f"stride_{name}": 0 for name in names}, "stride_bias": 1}


def listed(kernel: object, arguments: dict[str, object]) -> Compilation:
    """Drop what the kernel does not take, and keep the options of the launch."""
    options = ("num_warps", "maxnreg", "enable_fp_fusion")
    return Compilation(kernel, {name: value for name, value in arguments.items() if name in kernel.arg_names or name in options})
