"""Prompts continued token by token: the straight line of the autoregressive baseline, from text to what each row became."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

import torch

from .config import EngineConfig, SamplingParams
from .contracts import Canvas, ModelFacts
from .decoding import choose_driver, library_bytes, weight_bytes, without_refused_loop
from .denoisers.autoregressive import AutoregressiveDecoder, AutoregressiveState
from .denoisers.autoregressive_bucket import AutoregressiveBucket, AutoregressiveBuckets, cache_bytes
from .errors import CaptureError, ConfigError, DeviceMemoryError, RequestError
from .model.causal_model import CausalModel
from .model.transformer import Transformer
from .runtime.drivers import CapturedDecode
from .runtime.graphs import Graphs, buffer_bytes
from .runtime.memory import HeadUse, MemoryPlan, plan_memory
from .runtime.readout import Outcome, read_outcome
from .runtime.runner import steps
from .text.canvas import lay_out
from .text.codec import TextCodec
from .text.formats import PromptDefaults
from .text.prompts import Prompt

# Decoding families whose checkpoints are no language models from left to right any more.
BIDIRECTIONAL = ("masked", "simplex")

Request = tuple[str | Prompt, SamplingParams]

log = logging.getLogger(__name__)


class Continuation:
    """Continues batches of prompts with a base alone, by the driver the operator chose, as `decoding.Decoding` does for denoisers.

    driver: "eager", "replay" or "loop". A batch with stop words steps eagerly: they are looked for in the text after every token.
    Raises:
        ConfigError: the checkpoint was trained to look both ways.
        CaptureError: the loop driver was asked for by name and cannot be built.
    """

    def __init__(self, transformer: Transformer, ops: Any, config: EngineConfig, facts: ModelFacts) -> None:
        if facts.decoding in BIDIRECTIONAL:
            raise ConfigError(
                f"autoregressive: this checkpoint decodes as {facts.decoding}, expected a causal base. Leave --autoregressive out."
            )
        self._transformer, self._config, self._facts = transformer, config, facts
        self.decoder = AutoregressiveDecoder(CausalModel(transformer, bool(config.batch_invariant)), ops)
        self.driver, backend = choose_driver(config)
        self.graphs: Graphs | None = None
        if backend is not None:
            buckets = AutoregressiveBuckets(facts.max_positions)
            loop = {"has_loop": self.driver == "loop", "needs_loop": config.driver == "loop"}
            self.graphs = Graphs(self.decoder, buckets, backend, self.plan_bucket, **loop)

    def run(self, requests: list[Request], codec: TextCodec, eos_ids: tuple[int, ...]) -> list[tuple[Outcome, Canvas, dict[str, float]]]:
        """Decode a batch of requests.

        Returns:
            One (outcome, canvas, timings) per request; the canvas is the prompt and as many open positions as the answer may have.
        Raises:
            RequestError: a prompt brings a draft or an infill, or cannot be laid out.
            ConfigError: a suppressed token is none of the vocabulary.
            DeviceMemoryError, CaptureError: as `Decoding.run`.
        """
        canvases = [_lay_out(prompt, one, codec, self._facts) for prompt, one in requests]
        params = [one for _, one in requests]
        started = time.perf_counter()
        prompts = [canvas.ids[: canvas.answer_start].tolist() for canvas in canvases]
        has_stop_words = any(one.stop for one in params)
        captured = None if has_stop_words or self.graphs is None else self._captured(prompts, params, eos_ids)
        try:
            if captured is not None:
                outcomes, first = self._replayed(captured)
            else:
                outcomes, first = self._stepped(prompts, params, eos_ids, codec)
        except torch.OutOfMemoryError as error:
            raise DeviceMemoryError(self._plan(prompts, params, eos_ids).refusal()) from error
        timings = {"first_step_ms": (first - started) * 1e3, "total_ms": (time.perf_counter() - started) * 1e3}
        return [(outcome, canvas, timings) for outcome, canvas in zip(outcomes, canvases, strict=True)]

    def plan_bucket(self, bucket: AutoregressiveBucket, buffers: int) -> MemoryPlan:
        """Plan the memory of a bucket: reading the longest prompts is its widest moment, the draw of all rows' tokens the head's."""
        item_bytes = getattr(torch, self._config.dtype).itemsize
        return plan_memory(
            self._facts,
            rows=bucket.rows,
            positions=bucket.prompt,
            answers=1,
            item_bytes=item_bytes,
            weights=weight_bytes(self._transformer),
            buffers=buffers + cache_bytes(bucket, self._facts, item_bytes),
            head=HeadUse(needs_rows=True, is_plain=self._config.precision == "auto"),
            precision=self._config.precision,
            library=library_bytes(self._config),
        )

    def _plan(self, prompts: list[list[int]], params: list[SamplingParams], eos_ids: tuple[int, ...]) -> MemoryPlan:
        buckets = AutoregressiveBuckets(self._facts.max_positions)
        state = self.decoder.lay_out(prompts, params, stop_ids=eos_ids, device="cpu")
        bucket = buckets.bucket_of(state)
        return self.plan_bucket(bucket, buffer_bytes(buckets, buckets.blank(bucket, state)))

    def _captured(self, prompts: list[list[int]], params: list[SamplingParams], eos_ids: tuple[int, ...]) -> CapturedDecode | None:
        """Return the decode of a batch on a captured bucket; None where "auto" steps down because the step cannot be captured."""
        assert self.graphs is not None
        state = self.decoder.lay_out(prompts, params, stop_ids=eos_ids, device="cpu")
        try:
            self.graphs.release(self.graphs.lease(state))
            self.driver = without_refused_loop(self.driver, self.graphs)
        except CaptureError as error:
            if self._config.driver != "auto":
                raise
            log.warning("prompts are continued eagerly: %s", error)
            self.driver, self.graphs = "eager", None
            return None
        return CapturedDecode(self.graphs, state, wants_loop=self.driver == "loop")

    def _replayed(self, decode: CapturedDecode) -> tuple[list[Outcome], float]:
        assert self.graphs is not None
        with decode:
            # The prompts have been read when the clock is: the first token is there.
            self.graphs.backend.synchronize()
            first = time.perf_counter()
            for _ in decode.frames():
                pass
            return [decode.outcome(row) for row in range(decode.requests)], first

    def _stepped(
        self, prompts: list[list[int]], params: list[SamplingParams], eos_ids: tuple[int, ...], codec: TextCodec
    ) -> tuple[list[Outcome], float]:
        state = self.decoder.begin(prompts, params, stop_ids=eos_ids, device=self._config.device)
        _end_at_stop_words(state, params, codec)
        is_done, first = bool(state.done.all()), time.perf_counter()
        if not is_done:
            for _ in steps(self.decoder, state):
                _end_at_stop_words(state, params, codec)
        return [read_outcome(state, row) for row in range(len(prompts))], first


def _lay_out(prompt: str | Prompt, params: SamplingParams, codec: TextCodec, facts: ModelFacts) -> Canvas:
    prompt = Prompt(prompt) if isinstance(prompt, str) else prompt
    for name in ("draft", "infill"):
        if getattr(prompt, name) is not None:
            raise RequestError(f"autoregressive: the prompt has a {name}, expected none: only diffusion decoding refines. Leave it out.")
    beyond = [token for token in params.suppress_tokens if token >= facts.vocab_size]
    if beyond:
        raise ConfigError(f"suppress_tokens: id {beyond[0]} is given, expected 0 to {facts.vocab_size - 1} (the base's vocabulary).")
    # No position is ever hidden, so any id may stand in the open ones.
    canvas = lay_out(prompt, codec, PromptDefaults(), max_new_tokens=params.max_new_tokens, max_positions=facts.max_positions, mask_id=0)
    if int(canvas.ids.max()) >= facts.vocab_size:
        raise RequestError(
            f"prompt: token id {int(canvas.ids.max())} is beyond the base's vocabulary, expected less than {facts.vocab_size}. "
            "The tokenizer's files do not belong to these weights."
        )
    return canvas


def _end_at_stop_words(state: AutoregressiveState, params: Sequence[SamplingParams], codec: TextCodec) -> None:
    """Mark rows done whose text already shows one of their stop words; only such rows are read on the host."""
    for index, one in enumerate(params):
        if one.stop and not state.resting[index]:
            text = codec.decode(state.answer[index, : int(state.answer_length[index])].tolist())
            if any(word in text for word in one.stop):
                state.done[index] = True
