"""The step after its prediction in one launch, one program per sequence: its answer stays in registers while a rule chooses positions."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ahead_of_time import Compilation
from ..device_math import loop_bound
from ..random.device import uniform_at
from ..random.reference import RENOISE, RETAIN, TRANSFER
from ..renoise.reference import SMALLEST_WEIGHT
from .buffers import EQUAL_PREDICTIONS, WHOLE, UpdateBuffers, UpdateRules, UpdateTables, check
from .device import count_both, covered_by_spans, take_smallest

MAX_POSITIONS = 2048
_SMALLEST_WEIGHT = tl.constexpr(SMALLEST_WEIGHT)
_EQUAL_PREDICTIONS = tl.constexpr(EQUAL_PREDICTIONS)
_RENOISE, _RETAIN, _TRANSFER = tl.constexpr(RENOISE), tl.constexpr(RETAIN), tl.constexpr(TRANSFER)
_NUMBERS = tl.constexpr(len(WHOLE))
_VISIBLE, _GROWS, _COUNT, _KEEP, _CLUSTERS, _CLUSTER_SIZE, _BUDGET, _BLOCK_START, _BLOCK_END = map(tl.constexpr, range(len(WHOLE)))
# The bits of fp32 infinity; those of a number that is not negative order as integers.
_INFINITY = tl.constexpr(0x7F800000)
_SIGNLESS = tl.constexpr(0x7FFFFFFF)


def launch_config(R: int) -> dict[str, int]:
    """Tile for R positions: the whole row, 2 per thread up to 512, 4 and 8 for the longest (4 at 256 spill on sm_100, 16 anywhere)."""
    block = max(32, triton.next_power_of_2(R))
    return {"BLOCK_R": block, "num_warps": min(8, max(1, block // 64))}


def rule_flags(used: frozenset[str]) -> dict[str, bool]:
    """Which parts of the kernel a batch's rules need."""
    return {
        "DRAWS": bool(used - {"none", "confidence", "split"}),
        "SELECTS": bool(used & {"random", "weighted", "confidence", "retain", "transfer"}),
        "IS_WEIGHTED": "weighted" in used,
        "SPLITS": "split" in used,
        "CLUSTERS": "clusters" in used,
        "TRANSFERS": "transfer" in used,
        "HAS_THRESHOLD": "threshold" in used,
    }


@triton.jit
def _update_kernel(
    token_ptr, new_confidence_ptr, whole_ptr, probability_ptr,
    redraws_ptr, is_weighted_ptr, is_clusters_ptr, is_bernoulli_ptr, is_lowest_ptr, retains_ptr, transfers_ptr,
    locks_ptr, is_permanent_ptr, splits_ptr, by_confidence_ptr, delays_eos_ptr, noise_clip_ptr, threshold_ptr,
    is_open_ptr, answer_start_ptr, answer_length_ptr, seeds_ptr, steps_ptr, early_stop_ptr, evaluations_ptr, eos_ids_ptr,
    ids_ptr, answer_ptr, before_ptr, predicted_ptr, confidence_ptr, shown_ptr, was_shown_ptr, retained_ptr, first_set_ptr, last_changed_ptr,
    done_ptr, acted_ptr, stopped_early_ptr, repeats_ptr, nfe_ptr, row_steps_ptr, step_ptr,
    stride_token_row, stride_token, stride_new_row, stride_new, stride_row, stride_ids_row,
    S, B, R, E, mask_id,
    DRAWS: tl.constexpr, SELECTS: tl.constexpr, IS_WEIGHTED: tl.constexpr, SPLITS: tl.constexpr, CLUSTERS: tl.constexpr,
    TRANSFERS: tl.constexpr, HAS_THRESHOLD: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    # No program reads the shared counter: each counts its own steps, so one may advance it at any time.
    if row == 0:
        tl.store(step_ptr, tl.load(step_ptr) + 1)
    is_done = tl.load(done_ptr + row)
    tl.store(acted_ptr + row, is_done == 0)
    if is_done:
        return
    step = tl.load(row_steps_ptr + row)
    numbers = whole_ptr + tl.minimum(step, S - 1) * _NUMBERS * B + row
    visible = tl.load(numbers + _VISIBLE * B)
    redraws = tl.load(redraws_ptr + row).to(tl.int1)
    retains = tl.load(retains_ptr + row).to(tl.int1)
    transfers = tl.load(transfers_ptr + row).to(tl.int1) if TRANSFERS else tl.full((), 0, tl.int1)
    delays_eos = tl.load(delays_eos_ptr + row).to(tl.int1)

    offs_r = tl.arange(0, BLOCK_R)
    mask_r = offs_r < R
    first_at = row * stride_row
    in_window = mask_r & (offs_r < visible)
    stays_open = tl.load(is_open_ptr + first_at + offs_r, mask=mask_r, other=0).to(tl.int1)
    is_open = stays_open & in_window
    answer = tl.load(answer_ptr + first_at + offs_r, mask=mask_r, other=0).to(tl.int32)
    retained = tl.load(retained_ptr + first_at + offs_r, mask=mask_r, other=0).to(tl.int1)
    is_writable = is_open & ~((answer != mask_id) & transfers) & ~(retained & tl.load(locks_ptr + row).to(tl.int1))
    # The interpreter of Triton 3.9 holds what a scalar flag was spread over as int8, and no mask may be that.
    is_writable = is_writable != 0
    token = tl.load(token_ptr + row * stride_token_row + offs_r * stride_token, mask=is_writable, other=0).to(tl.int32)
    predicted = tl.where(is_writable, token, answer)
    new_confidence = tl.load(new_confidence_ptr + row * stride_new_row + offs_r * stride_new, mask=is_writable, other=0.0)
    confidence = tl.where(is_writable, new_confidence, tl.load(confidence_ptr + first_at + offs_r, mask=mask_r, other=0.0))
    differs = mask_r & (predicted != tl.load(predicted_ptr + first_at + offs_r, mask=mask_r, other=0).to(tl.int32))
    is_same = (tl.sum(differs.to(tl.int32), 0) == 0) & (tl.load(numbers + _GROWS * B) == 0)
    repeats = tl.where(is_same, tl.load(repeats_ptr + row) + 1, 1)
    is_eos = offs_r < 0
    for e in tl.range(loop_bound(E)):
        is_eos = is_eos | (predicted == tl.load(eos_ids_ptr + e).to(tl.int32))
    is_eos = is_eos & in_window
    tl.store(predicted_ptr + first_at + offs_r, predicted, mask=mask_r)
    tl.store(confidence_ptr + first_at + offs_r, confidence, mask=mask_r)

    was_shown = tl.load(was_shown_ptr + first_at + offs_r, mask=mask_r, other=0).to(tl.int1)
    eligible = is_open & ~(was_shown & tl.load(is_permanent_ptr + row).to(tl.int1))
    masked = offs_r < 0
    commits = offs_r < 0
    score = confidence
    if DRAWS:
        purpose = tl.where(retains, _RETAIN, tl.where(transfers, _TRANSFER, _RENOISE))
        u = uniform_at(tl.load(seeds_ptr + row), offs_r, step, purpose)
        probability = tl.load(probability_ptr + tl.minimum(step, S - 1) * B + row)
        drawn = ((u.to(tl.float64) < probability) | (is_eos & delays_eos)) & tl.load(is_bernoulli_ptr + row).to(tl.int1)
        if CLUSTERS:
            is_centre = mask_r & (offs_r < tl.load(numbers + _CLUSTERS * B))
            width = tl.load(numbers + _CLUSTER_SIZE * B)
            # `before` is free until it is written.
            covered = covered_by_spans(u, offs_r, mask_r, is_centre, visible, width, before_ptr + first_at)
            drawn = drawn | (covered & tl.load(is_clusters_ptr + row).to(tl.int1))
        masked = eligible & drawn
        score = tl.where(redraws | ((retains | transfers) & ~tl.load(by_confidence_ptr + row).to(tl.int1)), u, confidence)
    if SELECTS:
        # A row follows one rule, so one pool of keys serves all: the smallest are taken.
        is_lowest = tl.load(is_lowest_ptr + row).to(tl.int1)
        bits = score.to(tl.int32, bitcast=True) & _SIGNLESS
        is_late = is_eos & delays_eos & ~redraws
        key = tl.where(is_lowest, tl.where(is_late, 0, bits + 1), tl.where(is_late, _INFINITY + 1, _INFINITY - bits))
        block_end = tl.load(numbers + _BLOCK_END * B)
        if HAS_THRESHOLD:
            threshold = tl.load(threshold_ptr + row)
            first_masked = tl.min(tl.where(is_writable, offs_r, R), 0)
            block_end = tl.where(threshold < float("inf"), (first_masked // tl.maximum(block_end, 1) + 1) * block_end, block_end)
        in_block = (offs_r >= tl.load(numbers + _BLOCK_START * B)) & (offs_r < block_end)
        pool = (eligible & (redraws | is_lowest)) | (is_open & ~retained & retains) | (is_writable & in_block & transfers)
        count = tl.load(numbers + _COUNT * B)
        keep = tl.load(numbers + _KEEP * B)
        before = offs_r < (tl.min(tl.where(is_eos, offs_r, R), 0) if SPLITS else R)
        held, held_before = count_both(retained, before)
        needed = tl.maximum(keep - held, 0)
        first = tl.where(retains, needed, tl.where(transfers, tl.load(numbers + _BUDGET * B), count))
        second = tl.zeros_like(first)
        in_second = offs_r < 0
        splits = tl.load(splits_ptr + row).to(tl.int1) & ~transfers
        if SPLITS:
            # round(keep * opened before / opened), half to even.
            opened, opened_before = count_both(is_open, before)
            opened = tl.maximum(opened, 1)
            product = keep.to(tl.int32) * opened_before
            share = product // opened
            twice_rest = 2 * (product - share * opened)
            share += ((twice_rest > opened) | ((twice_rest == opened) & ((share & 1) == 1))).to(tl.int32)
            in_pool, in_text = count_both(pool, ~is_eos)
            # floor(count in_text / (in_pool + 1e-5)) is one less than without the 1e-5 where that is whole, as long as count < 10^5.
            product = count.to(tl.int32) * in_text
            text = product // tl.maximum(in_pool, 1)
            text -= ((product > 0) & (text * in_pool == product)).to(tl.int32)
            has_need = (needed > 0).to(tl.int64)
            of_first = tl.where(retains, (share - held_before) * has_need, text)
            of_second = tl.where(retains, (keep - share - (held - held_before)) * has_need, count - text)
            first = tl.where(splits, of_first, first)
            second = tl.where(splits, of_second, second)
            in_second = splits & tl.where(retains, ~before, is_eos)
        if IS_WEIGHTED:
            # Without weights log(u) orders as u does.
            clip = tl.load(noise_clip_ptr + row)
            weight = tl.where(tl.load(is_weighted_ptr + row).to(tl.int1), tl.maximum(1 - confidence, clip), 1.0).to(tl.float64)
            size = -(tl.log(u.to(tl.float64)) / tl.maximum(weight, _SMALLEST_WEIGHT))
            wide = tl.where(redraws, size.to(tl.int64, bitcast=True), key.to(tl.int64))
            taken = take_smallest(wide, pool, in_second, first, second, 63)
        else:
            taken = take_smallest(key, pool, in_second, first, second, 31)
        if HAS_THRESHOLD:
            taken = taken | (pool & transfers & ~is_late & (confidence >= threshold))
        if SPLITS:
            # What a side of a retained row could not use goes to its lowest free positions.
            rest = pool & ~taken & retains & splits
            taken = taken | (rest & (tl.cumsum(rest.to(tl.int32), 0) <= needed - tl.sum(taken.to(tl.int32), 0)))
        retained = retained | (taken & retains)
        tl.store(retained_ptr + first_at + offs_r, retained, mask=mask_r)
        masked = masked | tl.where(retains, eligible & ~retained, taken & ~transfers)
        commits = taken & transfers

    # Read again rather than held: with 8 positions per thread the choice above leaves no register free.
    tl.debug_barrier()
    answer = tl.load(answer_ptr + first_at + offs_r, mask=mask_r, other=0).to(tl.int32)
    predicted = tl.load(predicted_ptr + first_at + offs_r, mask=mask_r, other=0).to(tl.int32)
    tl.store(before_ptr + first_at + offs_r, answer, mask=mask_r)
    stays_open = tl.load(is_open_ptr + first_at + offs_r, mask=mask_r, other=0).to(tl.int1)
    was_shown = tl.load(was_shown_ptr + first_at + offs_r, mask=mask_r, other=0).to(tl.int1)
    is_last = step >= tl.load(steps_ptr + row) - 1
    early_stop = tl.load(early_stop_ptr + row).to(tl.int1)
    stops = early_stop & (repeats >= _EQUAL_PREDICTIONS)
    if TRANSFERS:
        committed = tl.where(commits, predicted, answer)
        # An end of text ends what is read, unless given tokens stand behind it.
        given_until = tl.max(tl.where(~stays_open & (offs_r < tl.load(answer_length_ptr + row)), offs_r + 1, 0), 0)
        ends = offs_r < 0
        for e in tl.range(loop_bound(E)):
            ends = ends | (committed == tl.load(eos_ids_ptr + e).to(tl.int32))
        end = tl.min(tl.where(ends & (offs_r >= given_until), offs_r, R), 0)
        is_final = tl.min(tl.where((committed == mask_id) & stays_open, offs_r, R), 0) >= end
        stops = tl.where(transfers, early_stop & is_final, stops)
    after = tl.where(masked & ~(is_last | stops), tl.cast(mask_id, tl.int32), predicted)
    if TRANSFERS:
        after = tl.where(transfers & ~stops, committed, after)
    shows = stays_open & (offs_r < visible) & (after != mask_id)
    first_set = tl.load(first_set_ptr + first_at + offs_r, mask=shows, other=0)
    shown = tl.load(shown_ptr + first_at + offs_r, mask=shows, other=0).to(tl.int32)
    now = tl.zeros_like(offs_r) + step.to(tl.int32)
    tl.store(first_set_ptr + first_at + offs_r, now, mask=shows & (first_set < 0))
    tl.store(last_changed_ptr + first_at + offs_r, now, mask=shows & (after != shown))
    tl.store(shown_ptr + first_at + offs_r, after, mask=shows)
    tl.store(was_shown_ptr + first_at + offs_r, was_shown | shows, mask=mask_r)
    tl.store(answer_ptr + first_at + offs_r, after, mask=mask_r)
    canvas = ids_ptr + row * stride_ids_row + tl.load(answer_start_ptr + row)
    tl.store(canvas + offs_r, after, mask=mask_r & (offs_r < tl.load(answer_length_ptr + row)))
    tl.store(repeats_ptr + row, repeats)
    tl.store(nfe_ptr + row, tl.load(nfe_ptr + row) + tl.load(evaluations_ptr + row))
    tl.store(row_steps_ptr + row, step + 1)
    tl.store(stopped_early_ptr + row, tl.load(stopped_early_ptr + row).to(tl.int1) | (stops & ~is_last))
    tl.store(done_ptr + row, stops | is_last)


def update(
    buffers: UpdateBuffers,
    rules: UpdateRules,
    tables: UpdateTables,
    token: Tensor,
    confidence: Tensor,
    *,
    mask_id: int,
    used: frozenset[str],
) -> None:
    """Contract of the reference; also a ValueError where R exceeds MAX_POSITIONS; token ids fit 32 bits."""
    check(buffers, rules, tables, token, confidence, used)
    B, R = token.shape
    if R > MAX_POSITIONS:
        raise ValueError(f"update: token is {(B, R)}, expected at most {MAX_POSITIONS} positions. Use --ops update=reference.")
    strides = (*token.stride(), *confidence.stride(), buffers.answer.stride(0), buffers.ids.stride(0))
    with torch.cuda.device_of(token):
        _update_kernel[(B,)](
            token, confidence, tables.whole, tables.probability,
            rules.redraws, rules.is_weighted, rules.is_clusters, rules.is_bernoulli, rules.is_lowest, rules.retains, rules.transfers,
            rules.locks, rules.is_permanent, rules.splits, rules.by_confidence, rules.delays_eos, rules.noise_clip,
            rules.threshold, buffers.is_open, buffers.answer_start, buffers.answer_length, buffers.seeds, buffers.steps, buffers.early_stop,
            buffers.evaluations, buffers.eos_ids, buffers.ids, buffers.answer, buffers.before, buffers.predicted, buffers.confidence,
            buffers.shown, buffers.was_shown, buffers.retained, buffers.first_set, buffers.last_changed,
            buffers.done, buffers.acted, buffers.stopped_early, buffers.repeats, buffers.nfe, buffers.row_steps, buffers.step,
            *strides, tables.whole.shape[0], B, R, buffers.eos_ids.numel(), mask_id, **rule_flags(used), **launch_config(R),
        )  # fmt: skip


def ahead_of_time() -> list[Compilation]:
    """A short, a usual, an odd and the longest answer with every rule, and the usual one for each smaller set of rules."""
    whole = (
        "token answer before predicted shown first_set last_changed ids eos_ids answer_start answer_length seeds steps evaluations repeats "
        "nfe row_steps step whole"
    )
    flags = (
        "redraws is_weighted is_clusters is_bernoulli is_lowest retains transfers locks is_permanent splits by_confidence delays_eos "
        "is_open early_stop was_shown retained done acted stopped_early"
    )
    pointers = {f"{name}_ptr": "*i64" for name in whole.split()} | {f"{name}_ptr": "*i1" for name in flags.split()}
    numbers = ("new_confidence", "noise_clip", "threshold", "confidence")
    pointers |= {f"{name}_ptr": "*fp32" for name in numbers} | {"probability_ptr": "*fp64"}
    everything = frozenset(("random", "weighted", "confidence", "retain", "transfer", "clusters", "split", "threshold"))
    sizes = {"stride_token": 1, "stride_new": 1, "S": 16, "E": 3, "mask_id": 128255}

    def compilation(R: int, used: frozenset[str], B: int) -> Compilation:
        rows = dict.fromkeys(("stride_token_row", "stride_new_row", "stride_row"), R) | {"stride_ids_row": R + 100, "B": B, "R": R}
        return Compilation(_update_kernel, {**pointers, **sizes, **rows, **rule_flags(used), **launch_config(R)})

    usual = [frozenset({name}) for name in ("none", "random", "confidence", "clusters", "weighted", "transfer")]
    return [compilation(256, used, 1) for used in usual] + [compilation(R, everything, 8) for R in (1, 123, 256, MAX_POSITIONS)]
