"""Reward guidance (TESS 2, section 3.4): a sequence classifier reads expected embeddings, and its gradient moves the logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config import SamplingParams
from ..contracts import SoftInput
from ..errors import CheckpointError
from .transformer import Transformer
from .weights import read_sequence_classifier

SCORE = "score.weight"


class RewardModel:
    """A frozen causal decoder with one score per position (Hugging Face's `...ForSequenceClassification`, one label).

    Its vocabulary must be that of the model it guides: a simplex over one vocabulary has no embedding in another.
    """

    def __init__(self, transformer: Transformer, score: Tensor) -> None:
        self.transformer, self._score = transformer, score

    @classmethod
    def open(cls, folder: str | Path, ops: Any, dtype: torch.dtype, device: torch.device | str, vocabulary: int) -> RewardModel:
        """Load a classifier's folder; `ops` must be differentiable.

        Raises:
            CheckpointError: it is no classifier with one label, or its vocabulary is another.
        """
        checkpoint = read_sequence_classifier(folder)
        facts, shape = checkpoint.facts, checkpoint.shapes.get(SCORE)
        if shape is None or shape[0] != 1:
            found = "missing" if shape is None else str(shape)
            raise CheckpointError(f"{folder}: {SCORE} is {found}, expected {(1, facts.width)}. Give a reward model with one label.")
        if facts.vocab_size != vocabulary:
            raise CheckpointError(
                f"{folder}: vocab_size is {facts.vocab_size}, expected {vocabulary}, the guided model's. Give a reward model of its family."
            )
        tensors = dict(checkpoint.tensors())
        score = tensors.pop(SCORE).to(device=device, dtype=dtype, copy=True)
        return cls(Transformer.from_tensors(facts, tensors.items(), ops, dtype, device), score)

    def steer(
        self, logits: Tensor, ids: Tensor, soft: SoftInput, answer_start: Tensor, end: Tensor, eos_ids: Tensor, params: SamplingParams
    ) -> Tensor:
        """Return logits + scale * d reward / d logits, after the params' inner steps, for one sequence.

        p = softmax(logits / t);  c = p E (or the embedding of the most probable token, where the gradient goes on as if it were c);
        d reward / d logit_v = p_v (g . E_v - sum_w p_w g . E_w) / t  with g = d reward / d c.
        Fixed positions keep their embeddings and their logits. The reward is read at the answer's first EOS, or its last position;
        by the rule "reference" at the window's last position, and with gradients that add up over the inner steps.
        Args:
            logits: `[R, V]`. ids: `[T]`. soft: column and is_soft `[T]`. answer_start, end: `[]`, the answer's positions [start, end).
        Returns:
            `[R, V]`, dtype of `logits`.
        """
        out, total = logits.float(), 0.0
        for _ in range(params.reward_steps):
            gradient = self._logit_gradient(out, ids, soft, answer_start, end, eos_ids, params)
            total = gradient + total if params.reward_rule == "reference" else gradient
            out = out + params.reward_scale * total
        return out.to(logits.dtype)

    def reward(self, embedded: Tensor, position: Tensor) -> Tensor:
        """Return the score `[]` at `position` `[]` of a sequence given by its embeddings `[T, D]`."""
        hidden = self.transformer(torch.zeros(1, len(embedded), dtype=torch.int64), is_causal=True, embedded=embedded[None])[0]
        row = hidden.index_select(0, position.view(1))
        return nn.functional.linear(self.transformer.head.normed(row), self._score)[0, 0].float()

    def gradient(self, embedded: Tensor, position: Tensor) -> Tensor:
        """Return d reward / d embedded `[T, D]`."""
        # A decode runs in inference mode, whose tensors no gradient can be taken of.
        with torch.inference_mode(False), torch.enable_grad():
            leaf = embedded.clone().requires_grad_()
            return torch.autograd.grad(self.reward(leaf, position.clone()), leaf)[0]

    def _logit_gradient(
        self, logits: Tensor, ids: Tensor, soft: SoftInput, answer_start: Tensor, end: Tensor, eos_ids: Tensor, params: SamplingParams
    ) -> Tensor:
        table = self.transformer.embed
        p = torch.softmax(logits / params.reward_temperature, 1)
        best = logits.argmax(1)
        mean = table[best] if params.reward_hard else p.to(table.dtype) @ table
        placed = torch.where(soft.is_soft[:, None], mean[soft.column], table[ids])
        slope = self.gradient(placed, self._position(best, ids, soft, answer_start, end, eos_ids, params))
        slope = torch.where(soft.is_soft[:, None], slope, 0.0)
        # Back from canvas positions to answer positions: only soft ones carry a slope, and each has a column of its own.
        pull = torch.zeros_like(mean).index_add_(0, soft.column, slope) @ table.T
        pull = pull.float()
        return p * (pull - (p * pull).sum(1, keepdim=True)) / params.reward_temperature

    def _position(
        self, best: Tensor, ids: Tensor, soft: SoftInput, answer_start: Tensor, end: Tensor, eos_ids: Tensor, params: SamplingParams
    ) -> Tensor:
        if params.reward_rule == "reference":
            return end - 1
        places = torch.arange(len(ids), device=ids.device)
        shown = torch.where(soft.is_soft, best[soft.column], ids)
        is_end = (shown[:, None] == eos_ids).any(1) & (places >= answer_start) & (places < end)
        return torch.minimum(torch.where(is_end, places, end).amin(), end - 1)
