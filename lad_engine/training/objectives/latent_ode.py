"""L2D's objective: name the next token from its own noised flow vector, with the frozen base beside the flow path."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...kernels.random.reference import FLOW_LABEL, FLOW_NOISE, FLOW_TIME
from ...model.kv_cache import KVCache
from ..losses import ROWS_PER_CHUNK, chunked_cross_entropy
from .objective import CleanBatch, Setting

# Times at which validation loss is taken; at 0 it is the base model's.
VALIDATION_TIMES = (0.0, 0.5, 0.9)


@dataclass(frozen=True)
class LatentBatch:
    """Clean ids `[B, T]`, and what is drawn for the position before each token, `[B, T - 1]`: times, noise keys, classes (or None).

    row, position, target, weight: the tokens whose loss counts; divisor: their weights' sum. seeds `[B]` and draw `[]` name the noise.
    """

    ids: Tensor
    times: Tensor
    classes: Tensor | None
    row: Tensor
    position: Tensor
    target: Tensor
    weight: Tensor
    divisor: Tensor
    seeds: Tensor
    draw: Tensor


class LatentObjective:
    """Mean cross-entropy of answer tokens and the closing EOS given x_t = t v_y + (1-t) sigma z, one time and noise per token.

    All positions are trained in one pass: the flow token of a position reads the main path's keys up to it. t is uniform, or by
    `flow_times` = "cosmap" 1 - 1 / (tan(pi u / 2) + 1). A token's class is the null one with probability class_dropout.
    """

    def __init__(self, setting: Setting) -> None:
        self._setting = setting

    def draw(self, clean: CleanBatch) -> LatentBatch:
        """Draw a time, and whether the class is dropped, for every token."""
        config, ops = self._setting.config, self._setting.ops
        columns = torch.arange(clean.ids.shape[1] - 1, device=clean.ids.device)
        times = ops.uniform(clean.seeds, columns, clean.draw, FLOW_TIME)
        if config.flow_times == "cosmap":
            times = 1.0 - 1.0 / (torch.tan(torch.pi * times / 2) + 1.0)
        classes = None
        if config.flow_classes:
            is_dropped = ops.uniform(clean.seeds, columns, clean.draw, FLOW_LABEL) < config.class_dropout
            own = clean.labels[:, None] if clean.labels is not None else config.flow_classes
            classes = torch.where(is_dropped, config.flow_classes, own)
        return _batch(clean, times, classes)

    def loss(self, model: Any, batch: LatentBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the summed cross-entropy of the batch's tokens."""
        rows = flow_rows(model.transformer, self._setting.ops, batch)[batch.row, batch.position - 1]
        smoothing = self._setting.config.label_smoothing
        return chunked_cross_entropy(model.head.logits, rows, batch.target, batch.weight, smoothing), {}

    @torch.no_grad()
    def validate(self, model: Any, batches: Any, device: torch.device) -> dict[str, float]:
        """Return mean loss and share of tokens named right at VALIDATION_TIMES, with the same noise every time and the null class."""
        out: dict[str, float] = {}
        for time in VALIDATION_TIMES:
            totals = sum((self.score(model, batch, time, device) for batch in batches), torch.zeros(3, dtype=torch.float64))
            count, name = max(float(totals[2]), 1.0), f"t{round(100 * time)}"
            out[f"val_loss_{name}"], out[f"val_recovered_{name}"] = float(totals[0]) / count, float(totals[1]) / count
        out["val_loss"] = sum(out[f"val_loss_t{round(100 * time)}"] for time in VALIDATION_TIMES) / len(VALIDATION_TIMES)
        return out

    @torch.no_grad()
    def score(self, model: Any, batch: Any, time: float, device: torch.device, shown: Tensor | None = None) -> Tensor:
        """Return (summed loss, tokens named right, tokens) `[3]` fp64 of a clean batch at one time.

        shown: `[B, T]` int64, tokens whose flow vectors are noised in place of the batch's own: what a wrong target does.
        """
        parts = (part.to(device) for part in (batch.ids, batch.answer_start, batch.first_eos, batch.keys))
        clean = CleanBatch(*parts, torch.zeros((), dtype=torch.int64, device=device), update=0)
        times = torch.full((clean.ids.shape[0], clean.ids.shape[1] - 1), time, device=device)
        null = self._setting.config.flow_classes
        drawn = _batch(clean, times, torch.full_like(times, null, dtype=torch.int64) if null else None)
        rows = flow_rows(model.transformer, self._setting.ops, drawn, shown)[drawn.row, drawn.position - 1]
        out = torch.zeros(3, dtype=torch.float64)
        for part, target in zip(rows.split(ROWS_PER_CHUNK), drawn.target.split(ROWS_PER_CHUNK), strict=True):
            logits = model.head.logits(part)
            out[0] += torch.nn.functional.cross_entropy(logits, target, reduction="sum").item()
            out[1] += (logits.argmax(1) == target).sum().item()
        out[2] = len(drawn.target)
        return out


def flow_rows(transformer: Any, ops: Any, batch: LatentBatch, shown: Tensor | None = None) -> Tensor:
    """Return h_main + w(t) h_flow `[B, T - 1, D]`, the rows that name the token after each position; the base gets no gradient.

    shown: `[B, T]` int64, the tokens whose flow vectors are noised; the batch's own where left out.
    """
    flow, ids = transformer.flow, batch.ids
    B, T = ids.shape[0], ids.shape[1] - 1
    with torch.no_grad():
        cache = KVCache(transformer.facts, B, T, transformer.embed.dtype, ids.device)
        hidden = transformer(ids[:, :T], cache=cache)
        embeddings = torch.nn.functional.embedding((ids if shown is None else shown)[:, 1:], transformer.embed)
    components = torch.arange(T * flow.latent.flow_width, device=ids.device)
    noise = torch.special.ndtri(ops.uniform(batch.seeds, components, batch.draw, FLOW_NOISE)).view(B, T, -1) * flow.latent.sigma
    t = batch.times[..., None]
    x = t * flow.vectors(embeddings) + (1.0 - t) * noise
    scale = ((1.0 - t).square() * flow.latent.sigma**2 + t.square()).rsqrt()
    times, classes = batch.times.flatten(), None if batch.classes is None else batch.classes.flatten()
    at, start = flow.embedded(times, classes), flow.embedded(torch.zeros_like(times), classes)
    h_flow = flow.parallel(flow.encoded(x, scale), at, start, cache)
    merged = hidden.float() + flow.merge_weight(times, at, start).view_as(h_flow) * h_flow.float()
    return merged.to(hidden.dtype)


def _batch(clean: CleanBatch, times: Tensor, classes: Tensor | None) -> LatentBatch:
    """Take the answers' tokens, each up to and with its closing EOS."""
    columns = torch.arange(clean.ids.shape[1], device=clean.ids.device)[None]
    counts = (columns >= clean.answer_start[:, None].clamp(min=1)) & (columns <= clean.first_eos[:, None])
    row, position = counts.nonzero(as_tuple=True)
    weight = torch.ones(len(row), device=clean.ids.device)
    target = clean.ids[row, position]
    return LatentBatch(clean.ids, times, classes, row, position, target, weight, weight.sum(), clean.seeds, clean.draw)
