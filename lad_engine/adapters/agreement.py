"""How often a quantised model chooses the token its full-precision twin chooses, on the very canvases the twin decodes through."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..contracts import TokenChoice, TokenRule
from .whole_files import whole_file

# Below this share a precision is experimental for the adapter that was measured.
FLOOR = 0.97
# Logits of this many rows exist at a time, twice.
ROWS_PER_CHUNK = 128


@dataclass(frozen=True)
class AgreementReport:
    """What a decode in `dtype` chose and what `precision` chose on the same canvases with the same random numbers.

    positions: open positions of all steps of all prompts; token_agreement: the share of them with the same token; step_agreement: the
    same per step; text_agreement: the share where `dtype` chose something other than an end token. Differences are absolute, of the
    confidences of the chosen tokens and of all logits.
    """

    adapter: str | None
    base: str
    base_fingerprint: str
    precision: str
    dtype: str
    device: str
    profile: str
    prompts: int
    steps: int
    positions: int
    token_agreement: float
    text_agreement: float
    worst_step_agreement: float
    step_agreement: tuple[float, ...]
    mean_confidence_difference: float
    max_confidence_difference: float
    mean_logit_difference: float
    max_logit_difference: float
    floor: float = FLOOR

    @property
    def verdict(self) -> str:
        """ "holds" where the token agreement reaches the floor, else "experimental"."""
        return "holds" if self.token_agreement >= self.floor else "experimental"

    def to_json(self) -> str:
        """The report as one indented JSON object."""
        return json.dumps({**asdict(self), "verdict": self.verdict}, indent=2)

    def sentence(self) -> str:
        """The report in one line for a terminal."""
        meaning = "it holds" if self.verdict == "holds" else f"below {self.floor:.0%}, so {self.precision} is experimental here"
        return (
            f"{self.precision} against {self.dtype} with {self.adapter or 'no adapter'}: {self.token_agreement:.2%} of "
            f"{self.positions} tokens agree ({self.text_agreement:.2%} of the text, {self.worst_step_agreement:.2%} in the worst step), "
            f"confidences differ by {self.mean_confidence_difference:.3g} on average; {meaning}"
        )


@dataclass
class _Step:
    """Sums over the positions counted in one step."""

    positions: int = 0
    same: int = 0


@dataclass
class PairedModel:
    """Two models read as one (implements `contracts.Denoisable`): the first decides, the second is compared on the same canvas.

    Call `count` after every step. exact and quantised have `head.logits` besides what a denoiser needs.
    """

    exact: Any
    quantised: Any
    steps: list[_Step] = field(default_factory=list)
    text: _Step = field(default_factory=_Step)
    confidence: tuple[float, float] = (0.0, 0.0)
    logits: tuple[float, float, int] = (0.0, 0.0, 0)
    _rows: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    _choices: tuple[TokenChoice, TokenChoice] | None = None
    _counts: tuple[int, ...] | None = None

    def read_rows(self, *arguments: Any, **named: Any) -> Tensor:
        """Read the rows of both models; the first one's go on, and `choose` finds the second one's by their order."""
        self._rows.append((self.exact.read_rows(*arguments, **named), self.quantised.read_rows(*arguments, **named)))
        return self._rows[-1][0]

    def choose(
        self,
        rows: Tensor,
        rule: TokenRule,
        uniforms: Tensor,
        unconditional: Tensor | None = None,
        counts: tuple[int, ...] | None = None,
        guided: tuple[bool, ...] | None = None,
        **named: Any,
    ) -> TokenChoice:
        """Choose by both models with the same uniforms; returns the first one's choice."""
        others = [other for _, other in self._rows] + [None]
        theirs = self.quantised.choose(others[0], rule, uniforms, others[1], counts, guided, **named)
        ours = self.exact.choose(rows, rule, uniforms, unconditional, counts, guided, **named)
        self._choices, self._counts = (ours, theirs), counts
        return ours

    def count(self, is_open: Tensor, eos_ids: Tensor, step: int) -> None:
        """Compare the last step at the open positions `[B, R]` that were read, as step number `step` of its decode."""
        assert self._choices is not None, "count follows a step"
        (ours, theirs), (rows, other_rows) = self._choices, self._rows[0]
        self._rows.clear()
        while len(self.steps) <= step:
            self.steps.append(_Step())
        is_counted = is_open
        if self._counts is not None:
            read = torch.tensor(self._counts, device=is_open.device)
            is_counted = is_open & (torch.arange(is_open.shape[1], device=is_open.device) < read[:, None])
        token, other = ours.token[is_counted], theirs.token[is_counted]
        if not token.numel():
            return
        is_text = ~(token[:, None] == eos_ids).any(1)
        for sums, chosen in ((self.steps[step], torch.ones_like(is_text)), (self.text, is_text)):
            sums.positions += int(chosen.sum())
            sums.same += int((chosen & (token == other)).sum())
        drift = (ours.confidence[is_counted] - theirs.confidence[is_counted]).abs().double()
        self.confidence = (self.confidence[0] + float(drift.sum()), max(self.confidence[1], float(drift.max())))
        pairs = zip(rows[is_counted].split(ROWS_PER_CHUNK), other_rows[is_counted].split(ROWS_PER_CHUNK), strict=True)
        for mine, their in pairs:
            difference = (self.exact.head.logits(mine) - self.quantised.head.logits(their)).abs()
            total, largest, number = self.logits
            total += float(difference.sum(dtype=torch.float64))
            self.logits = (total, max(largest, float(difference.max())), number + difference.numel())

    def totals(self) -> dict[str, Any]:
        """Return the figures of an AgreementReport."""
        positions, text = sum(step.positions for step in self.steps), self.text
        shares = tuple(step.same / step.positions for step in self.steps if step.positions)
        return {
            "steps": len(shares),
            "positions": positions,
            "token_agreement": sum(step.same for step in self.steps) / positions,
            "text_agreement": text.same / text.positions if text.positions else 1.0,
            "worst_step_agreement": min(shares),
            "step_agreement": shares,
            "mean_confidence_difference": self.confidence[0] / positions,
            "max_confidence_difference": self.confidence[1],
            "mean_logit_difference": self.logits[0] / self.logits[2],
            "max_logit_difference": self.logits[1],
        }


def save_agreement(report: AgreementReport, adapter_path: str | Path) -> Path:
    """Write the report beside the adapter (agreement_int8.json in a folder, <name>.agreement_int8.json next to a file), or not at all.

    Raises:
        AdapterError: the place cannot be written.
    """
    place, name = Path(adapter_path), f"agreement_{report.precision}.json"
    place = place / name if place.is_dir() else place.with_suffix(f".{name}")
    with whole_file(place) as temporary:
        temporary.write_text(report.to_json() + "\n", encoding="utf-8")
    return place
