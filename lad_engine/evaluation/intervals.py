"""95 % confidence intervals: Wilson's for shares, percentile bootstrap for means, ratios and differences, jackknife for whole lists."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

Z = 1.959963984540054
RESAMPLES = 2000
SEED = 20250101
T = TypeVar("T")


def share(hits: Sequence[bool]) -> dict[str, Any]:
    """Return the share of true values with Wilson's interval."""
    n, k = len(hits), sum(hits)
    if n == 0:
        return _metric(math.nan, math.nan, math.nan, "wilson", 0)
    p, square = k / n, Z * Z
    centre, width = (p + square / (2 * n)) / (1 + square / n), Z / (1 + square / n) * math.sqrt(p * (1 - p) / n + square / (4 * n * n))
    return _metric(p, max(0.0, centre - width), min(1.0, centre + width), "wilson", n)


def mean(values: Sequence[float]) -> dict[str, Any]:
    """Return the mean with a bootstrap interval over the values."""
    return ratio(values, [1.0] * len(values))


def ratio(totals: Sequence[float], counts: Sequence[float], exponential: bool = False) -> dict[str, Any]:
    """Return sum(totals) / sum(counts), or its exponential, with a bootstrap interval over the examples; one example has none."""
    n = len(totals)
    if n == 0 or sum(counts) == 0:
        return _metric(math.nan, math.nan, math.nan, "bootstrap", n)
    above, below = np.asarray(totals, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    picks = np.random.Generator(np.random.PCG64(SEED)).integers(0, n, (RESAMPLES, n))
    sums = below[picks].sum(1)
    drawn = above[picks].sum(1)[sums > 0] / sums[sums > 0]
    value, (low, high) = above.sum() / below.sum(), np.percentile(drawn, [2.5, 97.5]) if n > 1 else (math.nan, math.nan)
    numbers = [float(np.exp(x)) if exponential else float(x) for x in (value, low, high)]
    return _metric(*numbers, "bootstrap", n)


def difference(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """Return the mean of ours less theirs, example by example, with a bootstrap interval over the examples.

    Both met the same questions: intervals of each alone, side by side, would call many a clear difference none.
    """
    return {**mean([one - other for one, other in zip(ours, theirs, strict=True)]), "interval": "paired bootstrap"}


def of_list(items: Sequence[T], figure: Callable[[Sequence[T]], float]) -> dict[str, Any]:
    """Return figure(items), from 0 to 1, with the interval of the delete-one jackknife (Efron and Stein 1981).

    Resampling with repeats, as the bootstrap does, would itself lower a share of different items.
    """
    n, value = len(items), figure(items)
    if n < 2:
        return _metric(value, math.nan, math.nan, "jackknife", n)
    without = np.array([figure([*items[:i], *items[i + 1 :]]) for i in range(n)])
    width = Z * math.sqrt((n - 1) / n * float(((without - without.mean()) ** 2).sum()))
    return _metric(value, max(0.0, value - width), min(1.0, value + width), "jackknife", n)


def _metric(value: float, low: float, high: float, interval: str, n: int) -> dict[str, Any]:
    # JSON has no NaN.
    numbers = {name: None if math.isnan(number) else number for name, number in (("value", value), ("low", low), ("high", high))}
    return {**numbers, "interval": interval, "n": n}
