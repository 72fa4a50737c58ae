"""Which tokens a text loses in training: T5's random spans and a prefix's continuation, as UL2 mixes them (TESS 2, section 3.1)."""

from __future__ import annotations

import numpy as np

# (kind, share of the tokens that go, mean length of a span); kinds are equally likely, and so are the means within one.
MIXTURE = (
    ("spans", 0.15, (3, 8)),
    ("spans", 0.5, (3, 8, 48)),
    ("prefix", 0.0, (0,)),
)


def draw_spans(lengths: np.ndarray, width: int, generator: np.random.Generator) -> np.ndarray:
    """Return `[B, width]` bool, the tokens that go; one denoiser of the mixture for the whole batch, drawn first.

    Args:
        lengths: `[B]` tokens of each text, at most width; what is behind them goes with a continuation and stays beside spans.
    """
    kind, share, means = MIXTURE[generator.integers(len(MIXTURE))]
    mean = means[generator.integers(len(means))]
    out = np.zeros((len(lengths), width), bool)
    for row, length in zip(out, lengths, strict=True):
        if kind == "prefix":
            row[prefix_length(int(length), generator) :] = True
        else:
            row[:length] = random_spans(int(length), share, mean, generator)
    return out


def prefix_length(length: int, generator: np.random.Generator) -> int:
    """Return how many tokens a continuation is given: the first, and 1 to (length - 1) / 2 more."""
    return 1 + int(generator.integers(1, max((length - 1) // 2, 1) + 1))


def random_spans(length: int, share: float, mean: int, generator: np.random.Generator) -> np.ndarray:
    """Return `[length]` bool: round(share * length) tokens in spans of about `mean`, between spans that stay, the first of which leads."""
    if length < 2:
        return np.zeros(length, bool)
    gone = min(max(round(length * share), 1), length - 1)
    spans = min(max(round(gone / mean), 1), gone, length - gone)
    sizes = np.stack([_segments(length - gone, spans, generator), _segments(gone, spans, generator)], 1).flatten()
    return np.repeat(np.arange(2 * spans) % 2 == 1, sizes)


def _segments(total: int, parts: int, generator: np.random.Generator) -> np.ndarray:
    """Cut `total` into `parts` whole numbers above 0, every cut equally likely."""
    cuts = np.sort(generator.choice(total - 1, parts - 1, replace=False) + 1) if parts > 1 else np.zeros(0, np.int64)
    return np.diff(np.concatenate([[0], cuts, [total]]))
