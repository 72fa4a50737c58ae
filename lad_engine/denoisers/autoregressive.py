"""The autoregressive baseline: one token per sequence and forward pass, in the same kind of static step as the denoisers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..config import SamplingParams
from ..contracts import TokenChoice, TokenRule
from ..errors import RequestError
from ..samplers.purposes import SAMPLE
from ..samplers.token_rule import build_token_rule


class DecodeCache(Protocol):
    """Keys and values of the tokens read so far; positions: `[B]` int64 on the device, how many of each sequence."""

    positions: Tensor

    def view(self, start: int, stop: int, capacity: int | None = None) -> DecodeCache: ...


class CausalDecodable(Protocol):
    """What autoregressive decoding needs from a model; `model.causal_model.CausalModel` says what each call takes."""

    def open_cache(self, batch: int, capacity: int) -> DecodeCache: ...

    def prefill(self, ids: Tensor, lengths: tuple[int, ...], cache: DecodeCache) -> Tensor: ...

    def decode(
        self, tokens: Tensor, cache: DecodeCache, lengths: tuple[int, ...] | None = None, unread: tuple[bool, ...] | None = None
    ) -> Tensor: ...

    def choose(self, rows: Tensor, rule: TokenRule, uniforms: Tensor) -> TokenChoice: ...


class Memory:
    """What lies beside the buffers of a batch or a bucket: the cache, opened when first prompts are read, and their lengths."""

    def __init__(self, prompt_lengths: tuple[int, ...] = ()) -> None:
        self.cache: Any = None
        self.prompt_lengths = prompt_lengths


@dataclass
class AutoregressiveState:
    """One batch being continued; row b is one request, column r its r-th new token. Tensors are written in place, never replaced.

    On the host, fixed: max_steps (forward passes at most), capacity (positions of the cache), memory. taken_steps counts the passes;
    resting names rows a driver has seen done, which then cost nothing where sequences are computed by themselves. is_static: the step
    reads no host number, looks at the whole capacity of the cache and computes every row, so that it can be captured.
    Per prompt position `[B, P]`: ids. Per new token `[B, R]`: answer, confidence; first_set and last_changed, the pass that made each,
    -1 where there is none.
    Per row `[B]`: token, the one chosen last; seeds; limits (max_new_tokens); answer_length, tokens made so far, the end token
    included; done; acted (took part in the last pass); stopped_early, an end token came before the limit; nfe, row_steps, forward
    passes that counted. columns `[R]`, stop_ids `[E]`, step `[]`; bounds as LadState.
    """

    max_steps: int
    capacity: int
    memory: Memory
    rule: TokenRule
    ids: Tensor
    answer: Tensor
    confidence: Tensor
    first_set: Tensor
    last_changed: Tensor
    token: Tensor
    seeds: Tensor
    limits: Tensor
    answer_length: Tensor
    done: Tensor
    acted: Tensor
    stopped_early: Tensor
    nfe: Tensor
    row_steps: Tensor
    columns: Tensor
    stop_ids: Tensor
    step: Tensor
    bounds: Tensor
    resting: tuple[bool, ...]
    taken_steps: int = 0
    is_static: bool = False

    @property
    def cache(self) -> DecodeCache:
        """The keys and values of what has been read."""
        return self.memory.cache


class AutoregressiveDecoder:
    """Continues batches of prompts with one model; keeps nothing between batches."""

    def __init__(self, model: CausalDecodable, ops: Any) -> None:
        self.model, self.ops = model, ops

    def begin(
        self,
        prompts: Sequence[Sequence[int]],
        params: Sequence[SamplingParams],
        *,
        stop_ids: tuple[int, ...],
        device: torch.device | str,
        capacity: int | None = None,
    ) -> AutoregressiveState:
        """Read the prompts (token ids, any lengths) and choose the first token of each: the pass that reads a prompt makes one too.

        stop_ids: tokens that end an answer, the EOS that `eos_bias` acts on first. capacity: positions of the cache, at least what the
            longest request needs, which is also the default; a captured step needs the same one every time.
        Raises:
            RequestError: a prompt is empty, there is not one SamplingParams each, or the cache is too small.
        """
        state = self.lay_out(prompts, params, stop_ids=stop_ids, device=device, capacity=capacity)
        self.prime_(state)
        return state

    def prime_(self, state: AutoregressiveState) -> None:
        """Read the prompts into the cache and choose the first token of each; a captured driver calls this once per batch."""
        lengths = state.memory.prompt_lengths
        self._accept(state, self._read(state, lengths))

    def _read(self, state: AutoregressiveState, lengths: tuple[int, ...]) -> Tensor:
        """Return `[B, D]`, the row of every prompt's last token; zeros for rows of a bucket that no prompt has."""
        cache, n = self._cache(state), len(lengths)
        rows = self.model.prefill(state.ids[:n, : max(lengths)], lengths, cache.view(0, n))
        return rows if n == len(state.done) else torch.cat([rows, rows.new_zeros(len(state.done) - n, rows.shape[1])])

    def _cache(self, state: AutoregressiveState) -> Any:
        if state.memory.cache is None:
            state.memory.cache = self.model.open_cache(len(state.done), state.capacity)
        return state.memory.cache

    def step_(self, state: AutoregressiveState) -> None:
        """Read the last token of every sequence and choose the next, in place; rows that are done stay as they are.

        Static: shapes follow the buffers (and, where not `is_static`, host numbers known beforehand), positions and per-step numbers
        come from device counters, and no tensor is read on the host.
        """
        lengths = None
        if not state.is_static:
            made = min(state.taken_steps, state.max_steps - 1) - 1
            lengths = tuple(length + made for length in state.memory.prompt_lengths)
        cache = self._cache(state)
        rows = self.model.decode(state.token, cache, lengths, None if state.is_static else state.resting)
        cache.positions.add_(~state.done)
        self._accept(state, rows)

    def _accept(self, state: AutoregressiveState, rows: Tensor) -> None:
        """Choose a token from each of `rows` `[B, D]` and note it where the sequence is not done."""
        is_active = ~state.done
        uniforms = self.ops.uniform(state.seeds, state.step.view(1), state.step, SAMPLE)
        choice = self.model.choose(rows, state.rule, uniforms[:, 0])
        at = (state.columns == state.step) & is_active[:, None]
        _write(state.token, choice.token, is_active)
        _write(state.answer, choice.token[:, None], at)
        _write(state.confidence, choice.confidence[:, None], at)
        _write(state.first_set, state.step, at)
        _write(state.last_changed, state.step, at)
        for counter in (state.answer_length, state.nfe, state.row_steps):
            counter.add_(is_active)
        is_last = state.answer_length >= state.limits
        stops = (choice.token[:, None] == state.stop_ids).any(1)
        state.acted.copy_(is_active)
        state.stopped_early.logical_or_(is_active & stops & ~is_last)
        state.done.logical_or_(stops | is_last)
        state.step.add_(1)
        state.taken_steps += 1

    def lay_out(
        self,
        prompts: Sequence[Sequence[int]],
        params: Sequence[SamplingParams],
        *,
        stop_ids: tuple[int, ...],
        device: torch.device | str,
        capacity: int | None = None,
    ) -> AutoregressiveState:
        """Copy a batch into buffers and read nothing yet; see `begin` for what is refused."""
        if not prompts or len(prompts) != len(params):
            raise RequestError(f"begin: {len(prompts)} prompts with {len(params)} SamplingParams, expected as many of each, at least one.")
        for index, prompt in enumerate(prompts):
            if not len(prompt):
                raise RequestError(f"prompt {index}: it has no token, expected at least one to continue. Give a text.")
        lengths = tuple(map(len, prompts))
        # The last token is not read back for its row, but a row that is done goes on writing to the slot it would have.
        needed = max(length + one.max_new_tokens for length, one in zip(lengths, params, strict=True))
        if capacity is not None and capacity < needed:
            raise RequestError(f"begin: the cache has {capacity} positions, expected at least {needed}. Shorten the prompt or the answer.")
        B, R = len(prompts), max(one.max_new_tokens for one in params)
        ids = np.zeros((B, max(lengths)), np.int64)
        for b, prompt in enumerate(prompts):
            ids[b, : lengths[b]] = prompt

        def put(values: Any, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.as_tensor(np.asarray(values), device=device).to(dtype, copy=True)

        return AutoregressiveState(
            max_steps=R,
            capacity=capacity or needed,
            memory=Memory(lengths),
            rule=build_token_rule(params, None, stop_ids, device),
            ids=put(ids),
            answer=put(np.zeros((B, R))),
            confidence=put(np.zeros((B, R)), torch.float32),
            first_set=put(np.full((B, R), -1)),
            last_changed=put(np.full((B, R), -1)),
            token=put(np.zeros(B)),
            seeds=put([one.seed for one in params]),
            limits=put([one.max_new_tokens for one in params]),
            answer_length=put(np.zeros(B)),
            done=put(np.zeros(B), torch.bool),
            acted=put(np.zeros(B), torch.bool),
            stopped_early=put(np.zeros(B), torch.bool),
            nfe=put(np.zeros(B)),
            row_steps=put(np.zeros(B)),
            columns=torch.arange(R, device=device),
            stop_ids=put(list(stop_ids)),
            step=put(0),
            bounds=put([R, 0]),
            resting=(False,) * B,
        )


def _write(buffer: Tensor, values: Tensor, where: Tensor) -> None:
    buffer.copy_(torch.where(where, values, buffer))
