"""LM head on a CPU: the library's product over chunks of the vocabulary, each scanned while its logits are still in the cache."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._cpu import SCAN_BLOCK, TokenScan
from ..choose_token.cpu_kernel import choose_token, kept_candidates
from ..device_cpu import convert, linear, multiplies_bfloat16, with_rows
from .reference import check

# Logits of a chunk: half a megabyte in fp32.
CHUNK_VALUES = 1 << 17
# Rows of whole logits where a row needs them all: 13 MB in fp32 for a vocabulary of 49,152.
FULL_ROWS = 64


def launch_config(N: int, V: int) -> dict[str, int]:
    """Columns of a chunk: whole blocks of the scan, so that its sums do not depend on where a chunk ends."""
    blocks = max(1, CHUNK_VALUES // (max(N, 1) * SCAN_BLOCK))
    return {"columns": min(V, min(blocks, 8) * SCAN_BLOCK)}


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
    """Contract of the reference. Memory: one chunk of logits, or FULL_ROWS rows of them for draws over all ids and top-p without top-k."""
    check(rows, weight, bias_ids, bias_values)
    N, V = rows.shape[0], weight.shape[0]
    rule = (uniforms, temperature, top_k, top_p, drop_crossing, full_confidence)
    kept = kept_candidates(max_top_k, V)
    token, confidence = torch.empty(N, dtype=torch.int64), torch.empty(N)
    if samples_all or kept == 0:
        for first in range(0, N, FULL_ROWS):
            part = slice(first, first + FULL_ROWS)
            columns = (*(column[part] for column in rule), bias_ids, bias_values[part])
            logits = linear(rows[part], weight)
            token[part], confidence[part] = choose_token(logits, *columns, max_top_k=max_top_k, samples_all=samples_all)
    elif N:
        scan = TokenScan("lm_head", *rule, bias_ids.contiguous(), with_rows(bias_values), V, kept)
        _scan_chunks(scan, rows, weight)
        scan.draw(token, confidence)
    return token, confidence


def _scan_chunks(scan: TokenScan, rows: Tensor, weight: Tensor) -> None:
    """Feed the scan every chunk of logits, rounded to the dtype of `rows`."""
    N, D = rows.shape
    V, threads = weight.shape[0], torch.get_num_threads()
    columns = launch_config(N, V)["columns"]
    is_widened = rows.dtype == torch.bfloat16 and not multiplies_bfloat16()
    is_scanned_as_is = rows.dtype in (torch.float32, torch.bfloat16)
    logits = torch.empty(N * columns, dtype=rows.dtype)
    if is_widened:
        rows, weight = convert(with_rows(rows), torch.empty(N, D)), with_rows(weight)
        piece, sums = torch.empty(columns, D), torch.empty(N * columns)
    for start in range(0, V, columns):
        stop = min(start + columns, V)
        chunk = logits[: N * (stop - start)].view(N, stop - start)
        if is_widened:
            wide = sums[: chunk.numel()].view(chunk.shape)
            torch.mm(rows, convert(weight[start:stop], piece[: stop - start]).t(), out=wide)
            convert(wide, chunk)
        else:
            torch.mm(rows, weight[start:stop].t(), out=chunk)
        scan.scan(chunk if is_scanned_as_is else chunk.float(), start, threads)
