"""How far a merged adapter is from the same adapter unmerged: rounding once is not the same as rounding in every product."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..model.transformer import Transformer
from .attach import Merged, attach, merge
from .low_rank import Adapter
from .preflight import mask_id_of
from .probe import Encoder, probe_canvases, probe_logits
from .whole_files import whole_file


@dataclass(frozen=True)
class DriftReport:
    """Merged against unmerged on the probe set, every row of every canvas.

    max_logit_difference, mean_logit_difference: over all logits. token_agreement: share of rows with the same best token.
    """

    adapter: str
    base: str
    base_fingerprint: str
    dtype: str
    canvases: int
    rows: int
    max_logit_difference: float
    mean_logit_difference: float
    token_agreement: float

    def to_json(self) -> str:
        """The report as one indented JSON object."""
        return json.dumps(asdict(self), indent=2)

    def sentence(self) -> str:
        """The report in one line for a terminal."""
        return (
            f"merge drift of {self.adapter} in {self.dtype}: logits differ by {self.max_logit_difference:.3g} at most and "
            f"{self.mean_logit_difference:.3g} on average, {self.token_agreement:.2%} of {self.rows} best tokens agree"
        )


def drift_report(transformer: Transformer, codec: Encoder, adapter: Adapter, merged: Merged | None = None) -> DriftReport:
    """Measure the drift of `adapter`; the decoder is left bit for bit as it was.

    Args:
        merged: what `merge` returned, when the adapter is in the weights now; None means the weights are the base's own.
    Raises:
        AdapterError: the adapter does not fit, or the merge kept no originals to compare with.
    """
    facts, base = adapter.facts, transformer.facts
    canvases = probe_canvases(codec, mask_id_of(facts, codec, base.vocab_size), base.max_positions)
    if merged is not None:
        merged.unmerge()
    try:
        attached = attach(transformer, adapter)
        beside = [probe_logits(transformer, canvas) for canvas in canvases]
        attached.detach()
    finally:
        if merged is not None:
            merged.merge_again()
    inside = merged or merge(transformer, adapter)
    within = [probe_logits(transformer, canvas) for canvas in canvases]
    if merged is None:
        inside.unmerge()
    dtype = str(transformer.embed.dtype).removeprefix("torch.")
    return DriftReport(facts.name, base.name, base.fingerprint, dtype, len(canvases), **_compare(beside, within))


def save_drift(report: DriftReport, adapter_path: str | Path) -> Path:
    """Write the report beside the adapter (drift.json in a folder, <name>.drift.json next to a file), whole or not at all."""
    place = Path(adapter_path)
    place = place / "drift.json" if place.is_dir() else place.with_suffix(".drift.json")
    with whole_file(place) as temporary:
        temporary.write_text(report.to_json() + "\n", encoding="utf-8")
    return place


def _compare(one: list[Tensor], other: list[Tensor]) -> dict[str, float | int]:
    rows = sum(x.shape[0] for x in one)
    values = sum(x.numel() for x in one)
    # canvas by canvas: joined, the logits of a large vocabulary would fill gigabytes
    largest = max(float((x - y).abs().max()) for x, y in zip(one, other, strict=True))
    total = sum(float((x - y).abs().sum(dtype=torch.float64)) for x, y in zip(one, other, strict=True))
    same = sum(int((x.argmax(-1) == y.argmax(-1)).sum()) for x, y in zip(one, other, strict=True))
    return {"rows": rows, "max_logit_difference": largest, "mean_logit_difference": total / values, "token_agreement": same / rows}
