"""Each commit rule against a slow plain-Python transcription, and the distribution of those that draw."""

from __future__ import annotations

import math
import random

import pytest
import torch
from stub_model import OPS

from lad_engine.kernels.update.commit import cluster_cover, lowest, retain, split_by_eos


def random_case(seed, rows=6, width=17, levels=5):
    source = random.Random(seed)
    score = [[source.randrange(levels) / levels for _ in range(width)] for _ in range(rows)]
    flags = [[[source.random() < share for _ in range(width)] for _ in range(rows)] for share in (0.7, 0.3, 0.25)]
    return score, *flags, [source.randrange(width + 2) for _ in range(rows)]


@pytest.mark.parametrize("seed", range(5))
def test_lowest_takes_the_smallest_keys_and_ties_to_the_lower_index(seed):
    score, pool, _, _, count = random_case(seed)
    got = lowest(torch.tensor(score), torch.tensor(pool), torch.tensor(count))
    for b, row in enumerate(score):
        inside = [r for r in range(len(row)) if pool[b][r]]
        wanted = set(sorted(inside, key=lambda r: (row[r], r))[: count[b]])
        assert {r for r in range(len(row)) if got[b, r]} == wanted
    assert not lowest(torch.tensor(score), torch.tensor(pool), torch.full((len(score),), -3)).any()


@pytest.mark.parametrize("seed", range(5))
def test_the_eos_split_is_the_space_formula(seed):
    _, pool, is_eos, _, count = random_case(seed)
    text, eos = split_by_eos(torch.tensor(count), torch.tensor(pool), torch.tensor(is_eos))
    for b, n in enumerate(count):
        T = sum(p and not e for p, e in zip(pool[b], is_eos[b], strict=True))
        E = sum(p and e for p, e in zip(pool[b], is_eos[b], strict=True))
        assert int(text[b]) == int(n * T / (T + E + 1e-5))
        assert int(eos[b]) == n - int(text[b])


@pytest.mark.parametrize("seed", range(5))
def test_cluster_cover_is_the_union_of_clipped_spans(seed):
    source = random.Random(seed)
    R = 23
    uniforms = torch.rand(4, R, generator=torch.Generator().manual_seed(seed)).clamp(1e-6, 1 - 1e-6)
    visible, clusters, width = [R, 11, R, 5], [source.randrange(0, 9) for _ in range(4)], [1, 3, 6, 5]
    got = cluster_cover(uniforms, *(torch.tensor(value) for value in (visible, clusters, width)))
    for b in range(4):
        covered = set()
        for j in range(clusters[b]):
            begin = max(0, int(float(uniforms[b, j]) * visible[b]) - width[b] // 2)
            covered |= set(range(begin, min(visible[b], begin + width[b])))
        assert {r for r in range(R) if got[b, r]} == covered


@pytest.mark.parametrize("seed", range(12))
def test_retention_fills_the_kept_set_like_the_authors(seed):
    score, is_open, retained, is_eos, keep = random_case(seed)
    retained = [[r and o for r, o in zip(*rows, strict=True)] for rows in zip(retained, is_open, strict=True)]
    splits = [b % 2 == 0 for b in range(len(score))]
    got = retain(*(torch.tensor(value) for value in (score, is_open, retained, keep, is_eos, splits)))
    for b, row in enumerate(score):
        held = {r for r in range(len(row)) if retained[b][r]}
        free = [r for r in range(len(row)) if is_open[b][r] and r not in held]
        needed = keep[b] - len(held)
        chosen = sorted(free, key=lambda r: (-row[r], r))[: max(0, needed)]
        if splits[b] and needed > 0:
            ends = [r for r in range(len(row)) if is_eos[b][r]]
            boundary = min(ends, default=len(row))
            opened = sum(is_open[b])
            target = round(keep[b] * sum(is_open[b][:boundary]) / opened)
            sides = [[r for r in free if r < boundary], [r for r in free if r >= boundary]]
            goals = [target - len([r for r in held if r < boundary]), keep[b] - target - len([r for r in held if r >= boundary])]
            chosen = []
            for side, goal in zip(sides, goals, strict=True):
                chosen += sorted(side, key=lambda r: (-row[r], r))[: max(0, goal)]
            chosen += [r for r in free if r not in chosen][: max(0, needed - len(chosen))]
        assert {r for r in range(len(row)) if got[b, r]} == held | set(chosen)


def draws(count, weight, trials=20000):
    """How often each of `len(weight)` positions is drawn over many seeds, with exactly `count` drawn each time."""
    R = len(weight)
    tokens = torch.zeros(trials, R, dtype=torch.int64)
    out = OPS.renoise(
        tokens,
        torch.ones(trials, R, dtype=torch.bool),
        torch.tensor([weight]).expand(trials, R).contiguous(),
        torch.full((trials,), count),
        torch.arange(trials),
        torch.tensor(5),
        1,
    )
    assert (out.sum(1) == count).all()
    return out.sum(0).tolist()


def chi_square(observed, expected):
    return sum((o - e) ** 2 / e for o, e in zip(observed, expected, strict=True))


def test_the_exact_draw_is_uniform():
    # 99.9 % of chi-square values with 7 degrees of freedom lie below 24.3; drawing without replacement only lowers it.
    assert chi_square(draws(3, [1.0] * 8), [20000 * 3 / 8] * 8) < 24.3


def test_the_weighted_draw_is_proportional_to_its_weights():
    weight = [0.01, 0.1, 0.3, 0.59, 1.0]
    # 99.9 % below 18.5 with 4 degrees of freedom.
    assert chi_square(draws(1, weight), [20000 * w / sum(weight) for w in weight]) < 18.5


def test_cluster_centres_are_uniform_with_replacement():
    R, trials = 16, 20000
    uniforms = OPS.uniform(torch.arange(trials), torch.arange(R), torch.tensor(2), 1)
    whole = torch.full((trials,), R)
    cover = cluster_cover(uniforms, whole, whole, torch.ones(trials, dtype=torch.int64))
    share = float(cover.double().mean())
    assert share == pytest.approx(1 - (1 - 1 / R) ** R, abs=4e-3)
    assert share == pytest.approx(1 - math.exp(-1), abs=2e-2)
    first = cluster_cover(uniforms, whole, torch.ones(trials, dtype=torch.int64), torch.ones(trials, dtype=torch.int64)).sum(0).tolist()
    # 99.9 % below 37.7 with 15 degrees of freedom.
    assert chi_square(first, [trials / R] * R) < 37.7
