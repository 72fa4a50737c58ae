"""Training noise of LAD: masks, swaps, duplications and span copies on the answer region, every draw keyed by its example."""

from __future__ import annotations

import torch
from torch import Tensor

from ..random.reference import CORRUPT_DUPLICATE, CORRUPT_LEVEL, CORRUPT_MASK, CORRUPT_SPAN, CORRUPT_SWAP, uniform

VARIANTS = ("paper", "code", "mask_only", "mixed")
LOWEST_LEVEL = 0.001
WHOLE_MASK_PROBABILITY = 0.1
MAX_SPAN = 3
MAX_SHIFT = 4


def structured_noise(
    ids: Tensor,
    answer_start: Tensor,
    lengths: Tensor,
    seeds: Tensor,
    step: Tensor,
    mask_id: int,
    variant: str,
    fixed_level: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Corrupt the answer `[answer_start, lengths)` of every row; the prompt and the tail beyond `lengths` stay clean.

    i is the index inside the answer, A = lengths - answer_start. Every draw is uniform(seed of the row, index, step, purpose), so the
    result does not depend on the batch slot, the batch-mates, or where the answer starts. With l0..l3 = the CORRUPT_LEVEL draws at
    index 0..3, a row is built in this order:

    1. Levels.     paper:     f = l2 if l1 < 1/2 else 0;    p = l3 / 2
                   code:      f = 1, p = 0 if l0 < 1/10;  else f = l2 / 2 if l1 < 1/2 else 0;  p = l3 (0 where A <= 2)
                   mask_only: f = 0.001 + 0.999 l2;         p = 0
                   mixed:     f as mask_only;               p as paper
                   fixed_level: f = fixed_level; p = 1/4 except for mask_only (validation at a chosen level).
       All in fp32. Steps 3 to 5 use q = p / 4.
    2. Mask:       position i becomes mask_id where its CORRUPT_MASK draw < f.
    3. Swap:       for i = 0 .. A-2 in this order: exchange i and i+1 where the CORRUPT_SWAP draw of i < q. The walk sees its own
                   exchanges, so a run of hits carries the token at its start to its end.
    4. Duplicate:  u = the CORRUPT_DUPLICATE draw of i. First all i >= 1 with u < q/2 (and i = A-1 with u < q) take the token of i-1;
                   then all i <= A-2 not among these with u < q take the token of i+1. Each of the two passes reads the state from
                   before that pass. A = 1 has no neighbour and is left alone.
    5. Span:       s0..s3 = the CORRUPT_SPAN draws at index 0..3. Where s0 < q: length n = min(1 + floor(3 s1), 3, A), start
                   c = min(floor((A - n + 1) s2), A - n), shift d = min(floor(8 s3), 7) - 4, plus 1 if that is >= 0 (-4..-1 and 1..4).
                   The n tokens at c overwrite those at c+d, read before any is written; targets outside the answer are dropped.

    Args:
        ids: `[B, T]` int64; answer_start, lengths, seeds: `[B]` int64; step: `[]` int64, the draw counter of the run.
        mask_id: token standing for a hidden position. variant: one of VARIANTS. fixed_level: f for every row, or None.
    Returns:
        (noised `[B, T]` int64, level `[B]` fp32 = f).
    Raises:
        ValueError: unknown variant, or shapes that disagree.

    Source: LAD paper, Algorithm 1 (paper); the authors' notebook export (code); their later mask-only notebook (mask_only).
    """
    check(ids, answer_start, lengths, seeds, variant)
    width = ids.shape[1]
    columns = torch.arange(width, device=ids.device)
    answer_length = lengths - answer_start
    # The answer is moved to column 0 so that steps 3 to 5 need no offsets; index is clamped only where it is masked out below.
    source = (columns[None] + answer_start[:, None]).clamp(max=width - 1)
    is_answer = columns[None] < answer_length[:, None]
    tokens = ids.gather(1, source)

    level, rate = _levels(seeds, step, answer_length, variant, fixed_level)
    tokens = torch.where(is_answer & (uniform(seeds, columns, step, CORRUPT_MASK) < level[:, None]), mask_id, tokens)
    if variant != "mask_only":
        tokens = _swap(tokens, uniform(seeds, columns, step, CORRUPT_SWAP) < rate[:, None], answer_length)
        tokens = _duplicate(tokens, uniform(seeds, columns, step, CORRUPT_DUPLICATE), rate[:, None], answer_length)
        tokens = _copy_span(tokens, uniform(seeds, torch.arange(4, device=ids.device), step, CORRUPT_SPAN), rate, answer_length)

    back = (columns[None] - answer_start[:, None]).clamp(min=0)
    inside = (columns[None] >= answer_start[:, None]) & (columns[None] < lengths[:, None])
    return torch.where(inside, tokens.gather(1, back), ids), level


def check(ids: Tensor, answer_start: Tensor, lengths: Tensor, seeds: Tensor, variant: str) -> None:
    """Raise ValueError for an unknown variant, or shapes that disagree."""
    if variant not in VARIANTS:
        raise ValueError(f"structured_noise: variant is {variant!r}, expected one of {', '.join(VARIANTS)}.")
    if ids.dim() != 2 or not answer_start.shape == lengths.shape == seeds.shape == ids.shape[:1]:
        shapes = tuple(tuple(t.shape) for t in (ids, answer_start, lengths, seeds))
        raise ValueError(f"structured_noise: ids, answer_start, lengths, seeds are {shapes}, expected [B, T] and three times [B].")


def _levels(seeds: Tensor, step: Tensor, answer_length: Tensor, variant: str, fixed_level: float | None) -> tuple[Tensor, Tensor]:
    """Return (f, q) `[B]` fp32 of step 1."""
    slots = torch.arange(4, device=seeds.device)
    whole, is_masking, fraction, rate = uniform(seeds, slots, step, CORRUPT_LEVEL).unbind(1)
    zero = torch.zeros_like(fraction)
    if fixed_level is not None:
        level = torch.full_like(fraction, fixed_level)
        rate = zero if variant == "mask_only" else torch.full_like(fraction, 0.25)
    elif variant == "paper":
        level, rate = torch.where(is_masking < 0.5, fraction, zero), rate * 0.5
    elif variant == "code":
        level = torch.where(is_masking < 0.5, fraction * 0.5, zero)
        is_whole = whole < WHOLE_MASK_PROBABILITY
        level = torch.where(is_whole, 1.0, level)
        rate = torch.where(is_whole | (answer_length <= 2), 0.0, rate)
    else:
        level = LOWEST_LEVEL + (1.0 - LOWEST_LEVEL) * fraction
        rate = rate * 0.5 if variant == "mixed" else zero
    return level, rate * 0.25


def _swap(tokens: Tensor, hits: Tensor, answer_length: Tensor) -> Tensor:
    """Exchange neighbours left to right: inside a run of hits every token moves one left and the first goes to the end."""
    width = tokens.shape[1]
    columns = torch.arange(width, device=tokens.device)
    hits = hits & (columns[None] < answer_length[:, None] - 1)
    hit_before = torch.roll(hits, 1, 1)
    hit_before[:, 0] = False
    run_start = torch.where(hits & ~hit_before, columns[None], 0).cummax(1).values
    carried_from = torch.where(hit_before, torch.roll(run_start, 1, 1), columns[None])
    source = torch.where(hits, (columns[None] + 1).clamp(max=width - 1), carried_from)
    return tokens.gather(1, source)


def _duplicate(tokens: Tensor, draws: Tensor, rate: Tensor, answer_length: Tensor) -> Tensor:
    """Overwrite single tokens with a neighbour, the left one first."""
    columns = torch.arange(tokens.shape[1], device=tokens.device)[None]
    last = answer_length[:, None] - 1
    hits = (draws < rate) & (columns <= last)
    from_left = hits & (columns >= 1) & ((draws < rate * 0.5) | (columns == last))
    from_right = hits & ~from_left & (columns < last)
    tokens = torch.where(from_left, torch.roll(tokens, 1, 1), tokens)
    return torch.where(from_right, torch.roll(tokens, -1, 1), tokens)


def _copy_span(tokens: Tensor, draws: Tensor, rate: Tensor, answer_length: Tensor) -> Tensor:
    """Copy 1 to 3 neighbouring tokens by -4..4 positions, reading all before writing."""
    columns = torch.arange(tokens.shape[1], device=tokens.device)[None]
    chance, span, place, direction = draws.unbind(1)
    # A draw just below 1 may round up in the product, hence the caps.
    count = torch.minimum((1 + (span * MAX_SPAN).long()).clamp(max=MAX_SPAN), answer_length)
    start = torch.minimum((place * (answer_length - count + 1)).long(), answer_length - count)
    shift = (direction * 2 * MAX_SHIFT).long().clamp(max=2 * MAX_SHIFT - 1) - MAX_SHIFT
    shift = shift + (shift >= 0)
    target = (start + shift)[:, None]
    written = (columns >= target) & (columns < target + count[:, None]) & (columns < answer_length[:, None]) & (chance < rate)[:, None]
    source = (columns - shift[:, None]).clamp(0, tokens.shape[1] - 1)
    return torch.where(written, tokens.gather(1, source), tokens)
