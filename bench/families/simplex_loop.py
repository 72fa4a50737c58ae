"""The decoding loop of TESS 2's public code written out plainly in our words (hamishivi/tess-2 at 6e4ebff): whole tensors, no kernels.

What makes it slow is kept as it is: fp32 noise, simplex and probabilities `[B, L, V]`, the head on every position, and a sort of the whole
vocabulary for top-p. Its further products with the embedding table are left out: one a step is made, and fixed positions are looked up.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

OFFSET = 1e-4


@dataclass(frozen=True)
class LoopModel:
    """A causal checkpoint read bidirectionally: embedding table `[V, H]`, time vector `[H]`, embeddings -> logits `[B, L, V]`."""

    table: Tensor
    time: Tensor
    logits_of: Callable[[Tensor], Tensor]


def alphas(steps: int) -> list[float]:
    """Return abar_i for i = 0 .. steps - 1."""
    start = math.cos(OFFSET / (1 + OFFSET) * math.pi / 2) ** 2
    return [math.cos((i / steps + OFFSET) / (1 + OFFSET) * math.pi / 2) ** 2 / start for i in range(steps)]


@torch.no_grad()
def tess_loop(
    model: LoopModel,
    ids: Tensor,
    span: Tensor,
    steps: int,
    *,
    k: float = 5.0,
    top_p: float | None = 0.99,
    temperature: float = 1.0,
    use_ddim: bool = False,
    noise: Callable[[int], Tensor] | None = None,
    draw: Callable[[Tensor, int], Tensor] | None = None,
    on_step: Callable[[int, Tensor, Tensor], None] | None = None,
) -> Tensor:
    """Fill the positions `span` `[B, L]` of `ids` `[B, L]` and return all ids.

    noise: the standard normal numbers `[B, L, V]` of draw number n (0 is the start's); draw: a token per row of filtered probabilities
    `[B, L, V]` at pass n; both random where left out. on_step: told (pass, shifted logits, drawn tokens).
    """
    B, L = ids.shape
    V = model.table.shape[0]
    noise = noise or (lambda _: torch.randn(B, L, V, device=ids.device))
    shares = alphas(steps)
    simplex = k * noise(0)
    previous = torch.zeros(B, L, V, device=ids.device)
    logits = previous
    for number, t in enumerate(reversed(range(steps))):
        mixed = (torch.softmax(simplex, -1) + torch.softmax(previous, -1)) / 2
        embedded = mixed.to(model.table.dtype) @ model.table + model.time * (t / steps)
        row_logits = model.logits_of(torch.where(span[..., None], embedded, torch.nn.functional.embedding(ids, model.table)))
        logits = torch.cat([row_logits.new_zeros(B, 1, V), row_logits[:, :-1]], 1)
        previous = logits
        token = _project(logits, top_p, temperature, draw, number)
        corner = torch.full_like(logits, -k).scatter_(2, token[..., None], k)
        if on_step is not None:
            on_step(number, logits, token)
        if t == 0:
            simplex = corner
            continue
        if use_ddim:
            predicted = 2 * k * torch.softmax(logits, -1) - k
            fresh = (simplex - math.sqrt(shares[t]) * predicted) / math.sqrt(1 - shares[t])
        else:
            fresh = k * noise(number + 1)
        simplex = math.sqrt(shares[t - 1]) * corner + math.sqrt(1 - shares[t - 1]) * fresh
    return torch.where(span, logits.argmax(-1), ids)


def _project(logits: Tensor, top_p: float | None, temperature: float, draw: Callable[[Tensor, int], Tensor] | None, number: int) -> Tensor:
    """Draw a token per position from the nucleus; the token that crosses top_p stays. Without top_p: the most probable one."""
    if top_p is None:
        return logits.argmax(-1)
    scores = logits / temperature
    ordered, places = torch.sort(scores, descending=True)
    is_cut = torch.softmax(ordered, -1).cumsum(-1) > top_p
    is_cut[..., 1:] = is_cut[..., :-1].clone()
    is_cut[..., 0] = False
    scores = scores.masked_fill(torch.zeros_like(is_cut).scatter(2, places, is_cut), -torch.inf)
    probabilities = torch.softmax(scores, -1)
    if draw is not None:
        return draw(probabilities, number)
    return torch.multinomial(probabilities.flatten(0, 1), 1).view(logits.shape[:2])
