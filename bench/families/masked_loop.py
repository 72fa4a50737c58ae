"""The reference loops of masked diffusion, written down plainly: every position through the head at every pass, nothing planned ahead.

DiffuLLaMA (arXiv 2410.17891, Algorithm 2 and its trainer's sampler), Dream (its generation rules) and LLaDA (its block sampler) with
Fast-dLLM's threshold and factor. `logits_of` maps ids `[B, N]` to logits `[B, N, V]` of the same positions: for a shifted model wrap it
in `shifted`. Each function returns the final ids and how many passes it made. The mask itself is never chosen.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

LogitsOf = Callable[[Tensor], Tensor]


def shifted(logits_of: LogitsOf) -> LogitsOf:
    """Let row j-1 predict position j; position 0 keeps row 0, which nobody uses while it is fixed."""
    return lambda ids: torch.cat([(rows := logits_of(ids))[:, :1], rows[:, :-1]], dim=1)


def random_reveal(
    logits_of: LogitsOf,
    ids: Tensor,
    is_fixed: Tensor,
    mask_id: int,
    *,
    steps: int,
    temperature: float,
    top_p: float,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, int]:
    """Reveal each hidden position with probability 1/(t+1) before pass t = T-1 .. 1, and what is left after the last."""
    x = torch.where(is_fixed, ids, mask_id)
    hidden = ~is_fixed
    guess = torch.where(hidden, _sampled(logits_of(x), mask_id, temperature, top_p, generator), x)
    for t in range(steps - 1, 0, -1):
        shows = hidden & (torch.rand(x.shape, generator=generator, device=x.device) < 1 / (t + 1))
        x = torch.where(shows, guess, x)
        hidden = hidden & ~shows
        guess = torch.where(hidden, _sampled(logits_of(x), mask_id, temperature, top_p, generator), x)
    return guess, steps


def confidence_reveal(logits_of: LogitsOf, ids: Tensor, is_fixed: Tensor, mask_id: int, *, steps: int) -> tuple[Tensor, int]:
    """Argmax and its log-probability; the floor(n t / T) lowest scores stay hidden, positions shown before compete with fresh ones."""
    x = torch.where(is_fixed, ids, mask_id)
    hidden = ~is_fixed
    count = hidden.sum(1)
    score, guess = _without(logits_of(x), mask_id).log_softmax(-1).max(-1)
    for t in range(steps - 1, 0, -1):
        cutoff = count * t // steps
        score = score.masked_fill(is_fixed, 1000.0)
        threshold = score.sort(dim=1).values.gather(1, cutoff[:, None])
        shows = hidden & ~(score < threshold)
        x = torch.where(shows, guess, x)
        hidden = hidden & ~shows
        score, guess = _without(logits_of(x), mask_id).log_softmax(-1).max(-1)
    return torch.where(hidden, guess, x), steps


def dream_reveal(
    logits_of: LogitsOf,
    ids: Tensor,
    mask_id: int,
    *,
    steps: int,
    rule: str,
    time_floor: float = 1e-3,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, int]:
    """Dream's rules origin, maskgit_plus, topk_margin and entropy, without noise on the order."""
    x, times = ids.clone(), torch.linspace(1, time_floor, steps + 1)
    for step in range(steps):
        hidden = x == mask_id
        t, s = times[step], times[step + 1]
        logits = _without(logits_of(x), mask_id)
        p = (logits / temperature if temperature else logits).softmax(-1)
        if rule == "origin":
            chance = 1 - s / t if step < steps - 1 else 1.0
            shows = hidden & (torch.rand(x.shape, generator=generator, device=x.device) < chance)
            x = torch.where(shows, _drawn(p, generator), x)
            continue
        token = _drawn(p, generator) if temperature else p.argmax(-1)
        score = p.gather(-1, token[..., None])[..., 0]
        if rule == "topk_margin":
            best = p.topk(2, dim=-1).values
            score = best[..., 0] - best[..., 1]
        elif rule == "entropy":
            score = (p * torch.log(p + 1e-10)).sum(-1)
        for b in range(len(x)):
            left = hidden[b].sum()
            n = int(left * (1 - s / t)) if step < steps - 1 else int(left)
            chosen = score[b].masked_fill(~hidden[b], -torch.inf).topk(n).indices
            x[b, chosen] = token[b, chosen]
    return x, steps


def llada_blocks(
    logits_of: LogitsOf,
    ids: Tensor,
    start: int,
    mask_id: int,
    *,
    steps: int,
    block_length: int,
    threshold: float | None = None,
    factor: float | None = None,
) -> tuple[Tensor, int]:
    """LLaDA for one sequence `[1, N]` whose answer begins at `start`; greedy, the surest first. With threshold or factor (Fast-dLLM)
    a block ends when nothing in it is hidden, and `steps` is not looked at."""
    x, passes = ids.clone(), 0
    blocks = [(a, min(a + block_length, x.shape[1])) for a in range(start, x.shape[1], block_length)]
    for a, b in blocks:
        own_steps = steps // len(blocks)
        counts = int((x[0, a:b] == mask_id).sum())
        step = 0
        while (x[0, a:b] == mask_id).any():
            score, token = _without(logits_of(x), mask_id).softmax(-1).max(-1)
            score = score[0].masked_fill(x[0] != mask_id, -torch.inf)
            score[b:] = -torch.inf
            left = int((x[0, a:b] == mask_id).sum())
            order = score.argsort(descending=True, stable=True)[:left]
            if threshold is not None:
                n = max(1, int((score[order] >= threshold).sum()))
            elif factor is not None:
                n = 0
                while n < left and score[order[n]] >= 1 - factor / (n + 2):
                    n += 1
                n = max(1, n)
            else:
                n = counts // own_steps + (step < counts % own_steps)
            x[0, order[:n]] = token[0, order[:n]]
            passes, step = passes + 1, step + 1
    return x, passes


def _without(logits: Tensor, mask_id: int) -> Tensor:
    logits = logits.float().clone()
    logits[..., mask_id] = -torch.inf
    return logits


def _sampled(logits: Tensor, mask_id: int, temperature: float, top_p: float, generator: torch.Generator | None) -> Tensor:
    """Nucleus sampling that keeps the token crossing top_p, over the whole sorted vocabulary."""
    values, order = (_without(logits, mask_id) / temperature).sort(dim=-1, descending=True)
    p = values.softmax(-1)
    p = p.masked_fill(p.cumsum(-1) - p > top_p, 0.0)
    return order.gather(-1, _drawn(p, generator)[..., None])[..., 0]


def _drawn(p: Tensor, generator: torch.Generator | None) -> Tensor:
    flat = torch.multinomial(p.flatten(0, -2), 1, generator=generator)
    return flat.view(p.shape[:-1])
