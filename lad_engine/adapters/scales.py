"""The factor of a low-rank update from rank and alpha, as PEFT defines it."""

from __future__ import annotations

import math

from ..contracts import AdapterFacts


def lora_scale(alpha: float, rank: int, uses_rslora: bool) -> float:
    """alpha / rank, or alpha / sqrt(rank) for rank-stabilised LoRA."""
    return alpha / math.sqrt(rank) if uses_rslora else alpha / rank


def lora_alpha(scale: float, rank: int, uses_rslora: bool) -> float:
    """The alpha that gives `scale` at `rank`; a whole number when rounding error alone keeps it from being one."""
    alpha = scale * (math.sqrt(rank) if uses_rslora else rank)
    return float(round(alpha)) if math.isclose(alpha, round(alpha), rel_tol=1e-12) else alpha


def default_scale(facts: AdapterFacts, rank: int) -> float:
    """The scale a module of `rank` has when nothing else is said about it."""
    return lora_scale(facts.alpha, rank, facts.uses_rslora)
