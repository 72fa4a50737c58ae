"""Which positions keep their token: each rule as a pure tensor function of static shape, rows independent of one another."""

from __future__ import annotations

import torch
from torch import Tensor


def lowest(key: Tensor, pool: Tensor, count: Tensor) -> Tensor:
    """Return `[B, R]` bool: the min(count, pool) smallest keys inside the pool, ties to the lower index.

    Args:
        key: `[B, R]` float. pool: `[B, R]` bool. count: `[B]` int64, 0 or less takes none.
    """
    order = key.masked_fill(~pool, torch.inf).sort(dim=1, stable=True).indices
    columns = torch.arange(key.shape[1], device=key.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(1, order, columns)
    return pool & (rank < count[:, None])


def split_by_eos(count: Tensor, pool: Tensor, is_eos: Tensor) -> tuple[Tensor, Tensor]:
    """Share `count` `[B]` between the text and the EOS positions of `pool` `[B, R]` as the Space does; returns (text, EOS) `[B]`.

    text = int(count * |text| / (|text| + |EOS| + 1e-5)), the rest is EOS's. The 1e-5 costs one position when a share is whole.
    """
    in_text = (pool & ~is_eos).sum(1)
    in_eos = (pool & is_eos).sum(1)
    text = ((count * in_text).double() / ((in_text + in_eos).double() + 1e-5)).floor().long()
    return text, count - text


def cluster_cover(uniforms: Tensor, visible: Tensor, clusters: Tensor, width: Tensor) -> Tensor:
    """Return `[B, R]` bool: the union of spans around centres drawn with replacement (the Space's random policy).

    centre_j = floor(u_j * visible) for j < clusters; its span is [max(0, centre - width // 2), + width), cut at visible.

    Args:
        uniforms: `[B, R]` fp32, one per possible centre. visible, clusters, width: `[B]` int64.
    """
    B, R = uniforms.shape
    columns = torch.arange(R, device=uniforms.device)
    centre = (uniforms.double() * visible[:, None]).long()
    start = (centre - (width // 2)[:, None]).clamp(min=0)
    end = torch.minimum(start + width[:, None], visible[:, None])
    is_drawn = (columns < clusters[:, None]).long()
    # Spans add +1 where they begin and -1 where they end; a running sum above 0 is covered.
    edges = torch.zeros(B, R + 1, dtype=torch.int64, device=uniforms.device)
    edges.scatter_add_(1, start, is_drawn).scatter_add_(1, end, -is_drawn)
    return edges.cumsum(1)[:, :R] > 0


def retain(score: Tensor, is_open: Tensor, retained: Tensor, keep: Tensor, is_eos: Tensor, splits: Tensor) -> Tensor:
    """Grow the retained set to `keep` positions per row, best score first; returns the new set `[B, R]` bool.

    With `splits`, the budget is shared between the columns before the first EOS and those from it on, in proportion to their size
    (rounded half to even), each less what it already retains; what a side cannot use goes to the lowest free columns.

    Args:
        score: `[B, R]` float, higher is kept sooner. is_open, retained, is_eos: `[B, R]` bool, retained inside open.
        keep: `[B]` int64. splits: `[B]` bool.
    """
    R = score.shape[1]
    free = is_open & ~retained
    needed = (keep - retained.sum(1)).clamp(min=0)
    best = lowest(-score, free, needed)
    columns = torch.arange(R, device=score.device)
    boundary = torch.where(is_eos, columns, R).amin(1, keepdim=True)
    before = columns < boundary
    size = is_open.sum(1).clamp(min=1)
    share = ((keep * (is_open & before).sum(1)).double() / size.double()).round().long()
    has_need = (needed > 0).long()
    first = lowest(-score, free & before, (share - (retained & before).sum(1)) * has_need)
    second = lowest(-score, free & ~before, (keep - share - (retained & ~before).sum(1)) * has_need)
    shared = first | second
    spare = lowest(columns.expand_as(score).to(score.dtype), free & ~shared, needed - shared.sum(1))
    return retained | torch.where(splits[:, None], shared | spare, best)
