"""The library's GEMM over chunks of the vocabulary, each scanned while its logits are still in the L2 cache.

A chunk is as many columns as make one wave of the library's tiles, so the buffer is small and always the same size; the scan carries the
best keys and the running mass of every row from chunk to chunk. Calls that a short list of keys cannot answer take whole rows of
logits, FULL_ROWS at a time.

The library chooses its algorithm by shape: a row's bits depend on how many rows it is called with. Callers that must not let them, call
with a fixed number of rows, or the Triton backend.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from ..ahead_of_time import Compilation
from ..choose_token.device_scan import choose_kernel, scan_kernel
from ..choose_token.triton_kernel import MAX_CANDIDATES, choose_config, choose_token, listed, pointers_and_strides
from ..choose_token.triton_kernel import launch_config as scan_config
from .reference import check

# The library's tile for bf16 on sm_90, and the multiprocessors of an H100 or H200: a chunk is one wave.
TILE_ROWS, TILE_COLUMNS, MULTIPROCESSORS = 128, 256, 132
# More rows would make chunks so narrow that the rows are read from memory more often than their products take.
MAX_ROWS = 2048
# Whole rows of logits: 66 MB in 16 bits for a vocabulary of 128,256, and the weight is read once per this many rows.
FULL_ROWS = 256


def launch_config(N: int, V: int) -> dict[str, int]:
    """Columns of a chunk of logits `[N, columns]`: at most 8.7 MB in 16 bits, a seventh of an H200's L2."""
    rows = N if N < TILE_ROWS else triton.cdiv(N, TILE_ROWS) * TILE_ROWS
    columns = MULTIPROCESSORS * TILE_ROWS // rows * TILE_COLUMNS
    return {"columns": min(V, max(TILE_COLUMNS, columns))}


def is_chunked(max_top_k: int, samples_all: bool) -> bool:
    """Whether a call is answered from chunks; the others hold `FULL_ROWS` rows of logits (a larger k, top-p or a draw over all ids)."""
    return 0 < max_top_k <= MAX_CANDIDATES and not samples_all


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
    """Contract of the reference. Memory: one chunk of logits, or `FULL_ROWS` rows of them where `is_chunked` says no."""
    check(rows, weight, bias_ids, bias_values)
    N = rows.shape[0]
    bias_ids = bias_ids.contiguous()
    token = torch.empty(N, dtype=torch.int64, device=rows.device)
    confidence = torch.empty(N, dtype=torch.float32, device=rows.device)
    chunked = is_chunked(max_top_k, samples_all)
    step = MAX_ROWS if chunked else FULL_ROWS
    columns = (uniforms, temperature, top_k, top_p, drop_crossing, full_confidence)
    for first in range(0, N, step):
        part = slice(first, first + step)
        rule = tuple(column[part] for column in columns)
        if chunked:
            _choose_in_chunks(rows[part], weight, rule, bias_ids, bias_values[part], max_top_k, token[part], confidence[part])
        else:
            logits = torch.nn.functional.linear(rows[part], weight)
            token[part], confidence[part] = choose_token(
                logits, *rule, bias_ids, bias_values[part], max_top_k=max_top_k, samples_all=samples_all
            )
    return token, confidence


def _choose_in_chunks(
    rows: Tensor,
    weight: Tensor,
    rule: tuple[Tensor, ...],
    bias_ids: Tensor,
    bias: Tensor,
    max_top_k: int,
    token: Tensor,
    confidence: Tensor,
) -> None:
    """Write the tokens and confidences of at most MAX_ROWS rows."""
    N, V = rows.shape[0], weight.shape[0]
    columns = launch_config(N, V)["columns"]
    config = scan_config(columns, least_tiles=1)
    splits, split_length = config.pop("splits"), config.pop("split_length")
    K = triton.next_power_of_2(min(max_top_k, V))
    buffer = torch.empty(N * columns, dtype=rows.dtype, device=rows.device)
    keys = torch.empty(N, splits, K, dtype=torch.int64, device=rows.device)
    masses = torch.empty(N, splits, dtype=torch.float64, device=rows.device)
    strides = tuple(column.stride(0) for column in rule)
    with torch.cuda.device_of(rows):
        for start in range(0, V, columns):
            stop = min(start + columns, V)
            logits = buffer[: N * (stop - start)].view(N, stop - start)
            torch.mm(rows, weight[start:stop].t(), out=logits)
            scan_kernel[(N, splits)](
                logits, rule[1], bias_ids, bias, keys, masses, logits.stride(0), strides[1], *bias.stride(),
                start, stop, bias_ids.shape[0], split_length, CONTINUES=start > 0, K=K, **config,
            )  # fmt: skip
        choose_kernel[(N,)](
            keys, masses, *rule, None, None, token, confidence, *strides, splits, **choose_config(splits, K)
        )  # fmt: skip


def ahead_of_time() -> list[Compilation]:
    """The scan that continues, with few and many candidates, and the draw after it; the rest is in the list of `choose_token`."""
    columns = launch_config(256, 128256)["columns"]
    config = scan_config(columns, least_tiles=1)
    splits, split_length = config.pop("splits"), config.pop("split_length")
    common = {**pointers_and_strides("*bf16"), "stride_logits_row": columns, "start": columns, "stop": 2 * columns, "M": 3}
    scan = {**common, "split_length": split_length, "CONTINUES": True, **config}
    draw = {**common, "tops_ptr": None, "totals_ptr": None, "splits": splits, **choose_config(splits, 4)}
    return [*(listed(scan_kernel, {**scan, "K": K}) for K in (1, 4, MAX_CANDIDATES)), listed(choose_kernel, draw)]
