"""The authors' decoding loop as they run it: a forward over everything, logits of every position, state in Python lists.

Transcribed from a description of the Space's and lad-code's `generate_answer`. What costs them time is kept: an additive mask of ones, the
head on all positions, top-k by threshold over whole rows, softmax and multinomial over the whole vocabulary, several host reads a step,
positions handled one by one in Python. What would only slow them is not: weights are merged and stay in the model's 16-bit type.
The loop that the tests use as an oracle (tests/denoisers/authors_loop.py) is another thing: it draws our random numbers and runs slowly.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

PROBABILITY_FLOOR = 1e-8
EQUAL_STATES = 3


@dataclass(frozen=True)
class AuthorsSettings:
    """Their demo's defaults; eos_bias is added to the EOS logit negated."""

    steps: int = 64
    eos_bias: float = 0.0
    sharpness: float = 1.0
    noise_start: float = 0.5
    top_k: int = 3
    top_p: float = 1.0
    early_stop: bool = True


class AuthorsLoop:
    """Refines one canvas; `forward(ids [1, T], mask [1, 1, T, T])` returns logits `[1, T, V]`."""

    def __init__(
        self, forward: Callable[[Tensor, Tensor], Tensor], mask_id: int, eos_id: int, device: str, settings: AuthorsSettings, seed: int = 0
    ) -> None:
        self.forward, self.mask_id, self.eos_id, self.device, self.settings = forward, mask_id, eos_id, device, settings
        self.random = random.Random(seed)

    @torch.inference_mode()
    def predict(self, ids: list[int]) -> tuple[list[int], list[float]]:
        """Sample a token for every position of the canvas; returns tokens and their probabilities."""
        batch = torch.tensor([ids], dtype=torch.long, device=self.device)
        mask = torch.ones(1, 1, len(ids), len(ids), device=self.device)
        logits = self.forward(batch, mask)
        logits[:, :, self.eos_id] -= self.settings.eos_bias
        if self.settings.top_k > 0:
            least = torch.topk(logits, self.settings.top_k, dim=-1).values[..., -1:]
            logits = torch.where(logits < least, torch.full_like(logits, -math.inf), logits)
        if self.settings.top_p < 1:
            ordered, order = torch.sort(logits, descending=True, dim=-1)
            is_dropped = torch.cumsum(torch.softmax(ordered, dim=-1), dim=-1) > self.settings.top_p
            is_dropped[..., 0] = False
            logits = logits.masked_fill(torch.zeros_like(is_dropped).scatter(-1, order, is_dropped), -math.inf)
        probabilities = torch.softmax(logits.clamp(-1e8, 1e4), dim=-1).clamp(min=PROBABILITY_FLOOR)[0]
        tokens = torch.multinomial(probabilities, 1)
        confidences = probabilities.gather(1, tokens)
        return tokens[:, 0].tolist(), confidences[:, 0].float().cpu().tolist()

    def step(self, ids: list[int], start: int, index: int) -> tuple[list[int], list[int]]:
        """Return (canvas as predicted, canvas after re-noising); the prompt `ids[:start]` stays."""
        tokens, _ = self.predict(ids)
        predicted = ids[:start] + tokens[start:]
        return predicted, self.renoise(predicted, start, index)

    def renoise(self, ids: list[int], start: int, index: int) -> list[int]:
        """Mask n centres drawn with replacement from the answer, n = int(schedule * answer length * noise_start)."""
        s, steps = self.settings.sharpness, self.settings.steps
        share = (math.exp(-s * index / steps) - math.exp(-s)) / (1 - math.exp(-s))
        answer = len(ids) - start
        count = int(share * answer * self.settings.noise_start)
        masked: set[int] = set()
        for _ in range(count):
            centre = self.random.randrange(answer)
            for position in range(centre, min(answer, centre + 1)):
                masked.add(position)
        out = list(ids)
        for position in sorted(masked)[:count]:
            out[start + position] = self.mask_id
        return out

    def decode(self, prompt: list[int], length: int) -> tuple[list[int], int]:
        """Refine `prompt` followed by MASK up to `length` positions; returns (answer ids, steps taken)."""
        ids = prompt + [self.mask_id] * (length - len(prompt))
        states: list[list[int]] = []
        predicted = ids
        for index in range(self.settings.steps):
            predicted, noised = self.step(ids, len(prompt), index)
            states.append(predicted)
            if self.settings.early_stop and len(states) >= EQUAL_STATES and states[-1] == states[-2] == states[-3]:
                break
            ids = noised if index < self.settings.steps - 1 else predicted
        return predicted[len(prompt) :], len(states)
