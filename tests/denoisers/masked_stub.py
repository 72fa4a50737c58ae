"""Masked decoding over the whole-number model, and the same scores as a plain function for the transcribed loops."""

from __future__ import annotations

import bench_on_path  # noqa: F401 - its import is its effect
import numpy as np
import torch
from stub_model import MASK, OPS, OracleModel, StubModel

from lad_engine.config import SamplingParams
from lad_engine.contracts import Canvas
from lad_engine.denoisers.masked import MaskedDenoiser
from lad_engine.model.certainty import certainty_of

EOS = 5


class SureModel(StubModel):
    """The stub with a head that also says how sure it is; batches of any size."""

    def choose(self, rows, rule, uniforms, unconditional=None, counts=None, guided=None, certainty=None):
        choice = super().choose(rows, rule, uniforms, unconditional, counts, guided)
        if certainty is None:
            return choice
        B, R = uniforms.shape

        def per_row(table):
            return table.repeat_interleave(R, dim=0, output_size=B * R)

        columns = (rule.temperature, rule.top_k, rule.top_p, rule.drop_crossing, rule.full_confidence)
        sure = certainty_of(
            self.logits(rows).flatten(0, 1),
            per_row(certainty),
            *map(per_row, columns),
            rule.bias_ids,
            per_row(rule.bias_values),
            max_top_k=rule.max_top_k,
        )
        return type(choice)(choice.token, choice.confidence, sure.view(B, R))


class SureOracle(OracleModel, SureModel):
    """Knows the answer, and how sure it is of it."""


def logits_of(model: StubModel, length: int | None = None):
    """Return ids `[B, N]` -> logits `[B, N, V]` of every position."""

    def score(ids):
        B, N = ids.shape
        positions = torch.arange(N).expand(B, N)
        return model.logits(model.read_rows(ids, positions, (N,) * B))

    return score


def holes(pattern: str) -> Canvas:
    """A canvas from a drawing: letters are given tokens, `_` is hidden; the answer begins at the first `|`."""
    start = pattern.index("|")
    cells = pattern.replace("|", "")
    ids = np.array([MASK if cell == "_" else 6 + ord(cell) % 16 for cell in cells], np.int64)
    is_open = np.array([cell == "_" for cell in cells])
    return Canvas(ids, is_open, start)


def begin(model, canvases, params):
    denoiser = MaskedDenoiser(model, OPS)
    return denoiser, denoiser.begin(canvases, params, mask_id=MASK, eos_ids=(EOS,), device="cpu")


def greedy(**settings) -> SamplingParams:
    return SamplingParams(**{"max_new_tokens": 12, "steps": 5, "temperature": 0.0, "top_k": 1, **settings})
