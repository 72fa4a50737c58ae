"""Log-likelihood of given answers: exact for a causal model, estimated from masked copies for a denoiser."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..errors import RequestError

if TYPE_CHECKING:
    from ..engine import Engine


@torch.inference_mode()
def exact(engine: Engine, front: Sequence[int], answer: Sequence[int]) -> tuple[float, bool]:
    """Return sum_j log p(answer_j | front, answer_<j) in nats under the causal model, and whether every token is the best one.

    Raises:
        RequestError: `front` is empty, or there is no room.
    """
    _check(engine, front, answer, 0)
    device = engine.model.transformer.embed.device
    ids = torch.tensor([[*front, *answer[:-1]]], device=device)
    hidden = engine.model.transformer(ids, is_causal=True)[0, len(front) - 1 :]
    return _read(engine.model.head.logits(hidden), torch.tensor(answer, device=device))


@torch.inference_mode()
def exact_single_tokens(engine: Engine, front: Sequence[int], tokens: Sequence[int]) -> list[tuple[float, bool]]:
    """Return `exact` of several one-token answers behind the same text, in one pass."""
    _check(engine, front, tokens[:1], 0)
    ids = torch.tensor([list(front)], device=engine.model.transformer.embed.device)
    logits = engine.model.head.logits(engine.model.transformer(ids, is_causal=True)[0, -1:])
    return [_read(logits, torch.tensor([token], device=logits.device)) for token in tokens]


@torch.inference_mode()
def masked(engine: Engine, front: Sequence[int], answer: Sequence[int], copies: int, key: str) -> tuple[float, bool]:
    """Return an estimate of the log-likelihood of `answer` `[L]` behind `front`, in nats, and whether one pass from all masks gives it.

    (1/C) sum_c (L / l_c) sum_{j masked in copy c} log p(answer_j | front, the unmasked rest), with l_c spread evenly over 1..L (LLaDA,
    equation 6). The canvas ends with the answer's end token, as an infill does; the mask token has no probability, as in decoding.

    Args:
        copies: C; one is exact where the answer is one token. key: names the random masks, which depend on nothing else.
    Raises:
        RequestError: there is no room.
    """
    _check(engine, front, answer, 1)
    L, device = len(answer), engine.model.transformer.embed.device
    hidden = _hidden_tokens(L, 1 if L == 1 else copies, key)
    ends = engine.eos_ids[:1]
    ids = torch.tensor([[*front, *answer, *ends]], device=device).repeat(len(hidden), 1)
    positions = torch.arange(len(front), len(front) + L, device=device).repeat(len(hidden), 1)
    masks = torch.from_numpy(hidden).to(device)
    ids[:, len(front) : len(front) + L][masks] = engine.mask_id
    rows = engine.model.read_rows(ids, positions, (ids.shape[1],) * len(hidden))
    wanted, total = torch.tensor(answer, device=device), 0.0
    for copy, mask in zip(rows[:-1], masks[:-1], strict=True):
        logits = _without(engine.model.head.logits(copy[mask]), engine.mask_id)
        total += L / int(mask.sum()) * _read(logits, wanted[mask])[0]
    last, is_best = _read(_without(engine.model.head.logits(rows[-1]), engine.mask_id), wanted)
    return (last if L == 1 else total / (len(hidden) - 1)), is_best


def _hidden_tokens(length: int, copies: int, key: str) -> np.ndarray:
    """Return `[copies + 1, length]` bool: which tokens each copy hides; the last row hides all. One row where length is 1."""
    if length == 1:
        return np.ones((1, 1), dtype=bool)
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
    generator = np.random.Generator(np.random.PCG64(seed))
    start = generator.random()
    counts = [1 + int((start + copy / copies) % 1.0 * length) for copy in range(copies)]
    rows = [np.isin(np.arange(length), generator.permutation(length)[:count]) for count in counts]
    return np.stack([*rows, np.ones(length, dtype=bool)])


def _read(logits: Tensor, wanted: Tensor) -> tuple[float, bool]:
    logp = torch.log_softmax(logits, -1).gather(1, wanted[:, None])
    return float(logp.double().sum()), bool((logits.argmax(-1) == wanted).all())


def _without(logits: Tensor, token: int | None) -> Tensor:
    logits[:, token] = -torch.inf
    return logits


def _check(engine: Engine, front: Sequence[int], answer: Sequence[int], extra: int) -> None:
    most = engine.facts.max_positions
    if not front or not answer or len(front) + len(answer) + extra > most:
        raise RequestError(
            f"likelihood: {len(front)} positions of context and {len(answer)} of answer, expected 1 of each or more and at most {most}. "
            "Shorten the text."
        )
