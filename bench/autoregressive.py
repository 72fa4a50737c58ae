"""Whole answers one token at a time: our captured decoder and transformers' `generate`, on the weights the denoiser has."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.decoder import Decoder
from bench.peers import transformers_model
from bench.random_model import random_ids
from bench.timing import copied, events_us, interleaved_us
from lad_engine.denoisers.autoregressive import AutoregressiveDecoder, AutoregressiveState
from lad_engine.model.causal_model import CausalModel

WARM_UP_STEPS = 2


class CapturedContinuation:
    """Our autoregressive decode of random prompts: read the prompts, then replay one captured step per further token."""

    def __init__(self, decoder: Decoder, batch: int, prompt: int, answer: int) -> None:
        self.decoder, self.answer = decoder, answer
        self.prompts = random_ids(decoder.facts, batch, prompt).tolist()
        self._autoregressive = AutoregressiveDecoder(CausalModel(decoder.transformer, batch_invariant=False), decoder.ops)
        self.params = [decoder.params(16, answer, top_k=1, remasking="none", seed=seed) for seed in range(batch)]
        self.state = self.begin()
        self.state.is_static = True
        self._start = {name: tensor.clone() for name, tensor in _tensors(self.state).items()}
        self._step = self._captured() if self.state.answer.is_cuda else lambda: self._autoregressive.step_(self.state)

    @torch.inference_mode()
    def begin(self) -> AutoregressiveState:
        """Read the prompts and choose the first token of each. No id ends the answer: random weights would end it anywhere."""
        capacity = len(self.prompts[0]) + self.answer
        return self._autoregressive.begin(self.prompts, self.params, stop_ids=(), device=self.decoder.device, capacity=capacity)

    @torch.inference_mode()
    def restore(self) -> None:
        """Bring the buffers back to where they were after the prompts."""
        for name, tensor in _tensors(self.state).items():
            tensor.copy_(self._start[name])

    @torch.inference_mode()
    def steps(self) -> None:
        """Enqueue every token after the first."""
        for _ in range(self.answer - 1):
            self._step()

    def timings(self, repeats: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the time of reading the prompts, and of one captured step."""
        prefill = interleaved_us({"prefill": self.begin}, repeats)["prefill"]
        return prefill, events_us(self.steps, self.decoder.device, before=self.restore, calls=max(self.answer - 1, 1), repeats=repeats)

    def _captured(self) -> Callable[[], None]:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.inference_mode(), torch.cuda.stream(stream):
            for _ in range(WARM_UP_STEPS):
                self._autoregressive.step_(self.state)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.inference_mode(), torch.cuda.graph(graph):
            self._autoregressive.step_(self.state)
        return graph.replay


def generate_us(decoder: Decoder, batch: int, prompt: int, answer: int, repeats: int) -> dict[str, Any]:
    """Return the time of transformers' `generate` for a whole answer of `answer` tokens, with its default cache."""
    theirs = transformers_model(decoder.transformer, decoder.dtype, decoder.device, is_causal=True)
    ids = random_ids(decoder.facts, batch, prompt).to(decoder.device)
    settings = {"max_new_tokens": answer, "min_new_tokens": answer, "do_sample": False, "attention_mask": torch.ones_like(ids)}

    @torch.inference_mode()
    def run() -> Tensor:
        return theirs.generate(ids, **settings)

    return interleaved_us({"generate": run}, repeats, warm_up=1)["generate"]


def summed(prefill: dict[str, Any], step: dict[str, Any], steps: int) -> dict[str, Any]:
    """Return the timing of a whole answer from its two parts."""
    parts = {name: prefill[name] + steps * step[name] for name in ("median_us", "min_us", "max_us")}
    return {**copied(step), **parts}


def _tensors(state: AutoregressiveState) -> dict[str, Tensor]:
    """Return every buffer a step writes."""
    own = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    cache = {f"cache.{name}": getattr(state.cache, name) for name in ("keys", "values", "positions")}
    return {name: value for name, value in {**own, **cache}.items() if isinstance(value, Tensor)}
