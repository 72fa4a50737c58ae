"""What the backend takes from an Engine: laying requests out, stepping batches, and making results; nothing else touches its inside."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from ..adapters.store import AdapterStore, Resident
from ..config import SamplingParams
from ..contracts import AdapterFacts, Canvas, GenerationResult
from ..engine import Engine
from ..errors import AdapterError, ConfigError
from ..requests import check_batch, check_canvas, lay_out_request
from ..runtime.graphs import Graphs, buffer_bytes
from ..runtime.readout import Outcome
from ..text.answer import cut_answer
from ..text.canvas import fixed_length
from ..text.prompts import Prompt

# Host-stepped rows are grouped by coarser shapes than captured ones. Where each is forwarded at its own length padding costs nothing.
POSITIONS, ANSWERS, LEAST_STEPS = 128, 64, 64
OWN_LENGTH_POSITIONS, OWN_LENGTH_ANSWERS = 1024, 128
# Sorting 64 of 49,152 pieces takes a CPU 3 to 8 % longer than 1; of 320 pieces it takes ten times as long.
PIECES_PER_CANDIDATE = 256
# Rows of a host-stepped batch from the start: those that rest are not forwarded, and buffers that grow are copied.
FIRST_ROWS = 8


class EngineParts:
    """One engine as the device thread uses it.

    store: its named adapters, None without. denoiser, family: what steps a batch and sorts it into buckets; graphs: the captured
    buckets, None where steps run eagerly. can_join: rows of this family can join a running batch; else requests start together.
    few_candidates: rows whose rules sort no more than these may share a batch, which sorts for all as for the one that needs most. It
    costs less than another product with the weights; where rows have no product in common it would only cost, so that it is 0.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._decoding = engine._decoding
        self.residents = engine._residents
        self.store: AdapterStore | None = self.residents.store if self.residents is not None else None
        self.denoiser, self.family = self._decoding._denoiser, self._decoding._buckets
        self.can_join = hasattr(self.family, "seat")
        self.device = torch.device(engine.config.device)
        model = engine.model
        self._has_own_lengths = model.batch_invariant and not model.rows_stand_alone
        self.few_candidates = 0 if model.batch_invariant else engine.facts.vocab_size // PIECES_PER_CANDIDATE

    @property
    def graphs(self) -> Graphs | None:
        return self._decoding.graphs if self.can_join else None

    def resident(self, name: str | None) -> Resident | None:
        """Return the adapter now loaded under a name, None for the engine's own; AdapterError where it is unknown."""
        if name is None:
            return None
        if self.store is None:
            raise AdapterError(f"adapter {name!r}: this engine has none by name, expected none. Load it with adapters={{name: path}}.")
        return self.store.get(name)

    def params(self, params: SamplingParams | None, resident: Resident | None) -> SamplingParams:
        """Check a request's parameters; None is the profile of its adapter."""
        if params is None:
            params = self.engine.sampling(adapter=resident and resident.name)
        check_batch([params], self.engine.facts, self.engine.family)
        return params

    def canvas(self, prompt: str | Prompt | Canvas, params: SamplingParams, resident: Resident | None) -> Canvas:
        """Lay a prompt out for its adapter, or check what the caller laid out; RequestError where it does not fit."""
        engine = self.engine
        if engine.mask_id is None:
            raise ConfigError("mask_token is None, expected a piece to hide answer positions with. Load the engine with one.")
        if isinstance(prompt, Canvas):
            return check_canvas(prompt, engine.facts)
        facts: AdapterFacts | None = engine.adapter_facts if self.store is None else resident and resident.facts
        return lay_out_request(prompt, params, facts, engine.codec, engine.facts, engine.family, engine.mask_id)

    def check(self, canvas: Canvas, params: SamplingParams) -> None:
        """Raise RequestError or ConfigError where canvas and parameters do not go together; `Engine.generate` asks the same.

        Tensors are left to the device thread: each would hand the interpreter over to it and wait to get it back.
        """
        self._decoding.check(canvas, params, self.engine.mask_id)

    def row(self, canvas: Canvas, params: SamplingParams) -> Any:
        """Return a request's state on the host, a batch of one."""
        return self._decoding._lay_out([canvas], [params], self.engine.mask_id, self.engine.eos_ids)

    def begin(self, canvases: Sequence[Canvas], params: Sequence[SamplingParams]) -> Any:
        """Return the state of a batch on the device, for families whose rows start together."""
        ids = {"mask_id": self.engine.mask_id, "eos_ids": self.engine.eos_ids}
        return self.denoiser.begin(canvases, params, device=self.device, **ids)

    def bucket(self, row: Any) -> Any:
        """Return the bucket a request belongs to, for one row."""
        bucket = self.family.bucket_of(row)
        if self.graphs is None:
            limit, own = self.family.max_positions, self._has_own_lengths
            unit, answer_unit = (OWN_LENGTH_POSITIONS, OWN_LENGTH_ANSWERS) if own else (POSITIONS, ANSWERS)
            positions = max(row.ids.shape[1], min(_rounded(row.ids.shape[1], unit), limit))
            answers = min(_rounded(row.answer.shape[1], answer_unit), positions)
            bucket = dataclasses.replace(bucket, positions=positions, answers=answers, steps=max(bucket.steps, LEAST_STEPS))
        return bucket

    @property
    def first_rows(self) -> int:
        """Rows that a batch is opened with."""
        # Beside adapters rows are forwarded whether they rest or not.
        is_free = self._has_own_lengths or self.store is None
        return FIRST_ROWS if self.graphs is None and is_free else 1

    def check_memory(self, bucket: Any, like: Any) -> None:
        """Raise DeviceMemoryError where a captured bucket does not fit what the device has free."""
        graphs = self.graphs
        if graphs is not None and bucket not in graphs.buckets:
            plan = self._decoding.plan_bucket(bucket, buffer_bytes(self.family, self.family.blank(bucket, like)))
            plan.check(graphs.backend.free_bytes())

    def solo(self, canvas: Canvas, params: SamplingParams, resident: Resident | None) -> tuple[int, ...]:
        """Decode one request alone and return its tokens."""
        self.point([resident])
        with self._decoding.run([canvas], [params], self.engine.mask_id, self.engine.eos_ids) as decode:
            for _ in decode.frames():
                pass
            return decode.outcome(0).token_ids

    def point(self, chosen: Sequence[Resident | None]) -> None:
        """Compute the rows of the next step with these adapters."""
        if self.store is not None:
            self.store.point(chosen)

    def answer(self, token_ids: Sequence[int], canvas: Canvas, params: SamplingParams) -> str:
        """Return the text of answer tokens, cut as the result's will be."""
        cut = cut_answer(
            self.engine.codec,
            token_ids,
            eos_ids=self.engine.eos_ids,
            mask_id=self.engine.mask_id,
            stop=params.stop,
            not_before=fixed_length(canvas, self.engine.eos_ids),
        )
        return cut.text

    def result(
        self, outcome: Outcome, canvas: Canvas, params: SamplingParams, timings: dict[str, float], adapter: str | None
    ) -> GenerationResult:
        """Make the result of a request that has ended."""
        own = self.engine.adapter_facts
        name = adapter if self.store is not None else own and own.name
        return self.engine._result(outcome, canvas, params, timings, name)


def _rounded(size: int, unit: int) -> int:
    return -(-size // unit) * unit
