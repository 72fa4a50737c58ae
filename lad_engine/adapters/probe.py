"""A fixed set of canvases (real sentences, then masks) on which two states of one model are compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..model.transformer import Transformer

SENTENCES = (
    "What is the capital of France?",
    "List three primary colours and say where each one is seen in nature.",
    "A train leaves at nine and arrives at noon. How long does the trip take?",
    "Write one sentence about the sea in winter.",
    "Translate into Spanish: good morning, my friend.",
    "def add(a, b):\n    return",
    "Explain to a child why the sky is blue.",
    "The three states of water are",
)
MASKS = 16


class Encoder(Protocol):
    """What is needed of a tokenizer: ids of a text, nothing added."""

    def encode(self, text: str) -> Sequence[int]: ...


def probe_canvases(codec: Encoder, mask_id: int, max_positions: int, count: int = len(SENTENCES)) -> list[Tensor]:
    """`count` canvases `[1, T]` int64: a sentence cut to leave room, then 16 masks."""
    room = max(1, min(64, max_positions - MASKS))
    return [torch.tensor([[*codec.encode(sentence)[:room], *[mask_id] * MASKS]], dtype=torch.int64) for sentence in SENTENCES[:count]]


@torch.no_grad()
def probe_logits(transformer: Transformer, canvas: Tensor) -> Tensor:
    """Logits `[T, V]` in fp32 of one canvas `[1, T]`, every row, bidirectional, on the host."""
    hidden = transformer(canvas.to(transformer.embed.device))
    return transformer.head.logits(hidden[0]).float().cpu()
