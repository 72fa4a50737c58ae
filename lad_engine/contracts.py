"""The nouns the rooms hand each other: facts about models and adapters, a laid-out canvas, a plan, events and results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    # Only named in annotations: the command line and the text room stay free of torch's 1.3 s import.
    from torch import Tensor


@dataclass(frozen=True)
class RopeFacts:
    """Rotary position embedding of a checkpoint; `kind` is "default", "linear" or "llama3" (Llama 3.x frequency scaling)."""

    theta: float = 10000.0
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192


@dataclass(frozen=True)
class ModelFacts:
    """What a base checkpoint is. Sizes: D width, F mlp_width, H query_heads, G kv_heads, K head_width, V vocab_size.

    family: the backbone (model_type). decoding: the family of `families.DECODINGS` it was trained for. mask_id: the id of a hidden
    position where config.json names one. predicts_next_token: row j-1 predicts position j. extra: what one decoding family alone needs.
    """

    family: str
    width: int
    mlp_width: int
    layers: int
    query_heads: int
    kv_heads: int
    head_width: int
    vocab_size: int
    max_positions: int
    norm_eps: float
    rope: RopeFacts
    has_qkv_bias: bool
    has_tied_head: bool
    bos_id: int | None
    eos_ids: tuple[int, ...]
    name: str = ""
    fingerprint: str = ""
    decoding: str = "lad"
    mask_id: int | None = None
    predicts_next_token: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class AdapterFacts:
    """What an adapter is and needs; written in the metadata of our single-file form and filled with defaults for PEFT folders.

    `predicts_next_token` is the one-position shift (row j-1 predicts position j); `prompt_format` is "chat", "space" or "raw";
    `system_prompt` None means the model's own template default; `decoding` is the family of `families.DECODINGS` it was trained for.
    """

    name: str
    rank: int
    alpha: float
    targets: tuple[str, ...]
    mask_token: str
    mask_id: int
    predicts_next_token: bool = False
    prompt_format: str = "chat"
    system_prompt: str | None = None
    corruption: str = "paper"
    profile: str = "paper"
    base_name: str = ""
    base_fingerprint: str = ""
    uses_rslora: bool = False
    eos_id: int | None = None
    decoding: str = "lad"
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Canvas:
    """One request laid out: prompt and answer positions of one sequence.

    ids: `[T]` int64, MASK wherever a position is open and has no draft token.
    is_open: `[T]` bool, positions that may change; everything else is clamped.
    answer_start: first position of the answer region `[answer_start, T)`; open positions lie inside it.
    """

    ids: np.ndarray
    is_open: np.ndarray
    answer_start: int

    @property
    def length(self) -> int:
        return int(self.ids.shape[0])

    @property
    def answer_length(self) -> int:
        return self.length - self.answer_start


@dataclass(frozen=True)
class TokenChoice:
    """What the head answers for the rows it was asked about.

    token: `[B, R]` int64; confidence: `[B, R]` fp32, the probability of `token` under the distribution named by the request.
    certainty: `[B, R]` fp32, how sure the distribution is, where asked for (see `Denoisable.choose`).
    """

    token: Tensor
    confidence: Tensor
    certainty: Tensor | None = None


@dataclass(frozen=True)
class TokenRule:
    """How tokens are chosen, as device tables of a batch; only the last two fields are baked into a captured step.

    temperature, top_p, cfg_scale: `[B]` fp32; top_k: `[B]` int64 (0 keeps all); drop_crossing, full_confidence: `[B]` bool.
    bias_ids: `[M]` int64; bias_values: `[B, M]` fp32 added to those logits (-inf forbids a token).
    max_top_k: candidates to sort, the largest top_k of the batch; 0 where a row has top_p < 1 without top_k (the whole vocabulary).
    samples_all: some row draws from the unfiltered softmax.
    """

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    drop_crossing: Tensor
    full_confidence: Tensor
    cfg_scale: Tensor
    bias_ids: Tensor
    bias_values: Tensor
    max_top_k: int
    samples_all: bool


@dataclass(frozen=True)
class Lowered:
    """Tokens whose logits are lowered before a choice is made.

    ids: `[B, C]` int64, tokens of each sequence, any of them several times; by: `[B, C]` fp32, the same for equal ids of a sequence.
    rows: which sequences lower any (host), None all.
    """

    ids: Tensor
    by: Tensor
    rows: tuple[bool, ...] | None = None


class Denoisable(Protocol):
    """What a denoiser needs from a model: hidden rows of a canvas, and the choice of tokens from them."""

    def read_rows(
        self, ids: Tensor, positions: Tensor, lengths: tuple[int, ...] | Tensor, unread: tuple[bool, ...] | None = None
    ) -> Tensor:
        """Forward `ids` `[B, T]` bidirectionally and return `[B, R, D]`, the rows that predict `positions` `[B, R]`.

        `lengths` holds each sequence's true length at this step; the tail beyond it is padding. It is a tuple of host integers (from
        the plan), or a device tensor `[B]` int64 in a captured step: the model then forwards all T positions of all B sequences, in
        shapes that follow `ids` and `positions` alone, and reads nothing on the host; `unread` and `counts` are None.
        `unread` names sequences whose rows nobody looks at: a model may leave them out where that changes no other sequence's numbers.
        """
        ...

    def choose(
        self,
        rows: Tensor,
        rule: TokenRule,
        uniforms: Tensor,
        unconditional: Tensor | None = None,
        counts: tuple[int, ...] | None = None,
        guided: tuple[bool, ...] | None = None,
        certainty: Tensor | None = None,
        lowered: Lowered | None = None,
    ) -> TokenChoice:
        """Final norm, LM head, guidance, bias, filters and sampling for `rows` `[B, R, D]`, one uniform `[B, R]` per row.

        `counts` (host integers) says how many of each sequence's rows, from the first on, are looked at; None is all R. With counts,
        `guided` names the sequences whose `unconditional` rows mean something; None is all of them.
        `certainty` `[B]` int64 also asks how sure each row's distribution is: 0 its token's probability, 1 the margin between its two
        most probable tokens, 2 its negative entropy; only masked diffusion asks.
        `lowered` names tokens whose logits are lowered, after guidance; only LAD asks.
        """
        ...


@dataclass(frozen=True)
class SoftInput:
    """What stands at the open positions of a simplex decode in place of an embedding.

    embedding: `[B, R, D]`, one per answer position. column: `[B, T]` int64, the answer position of a canvas position.
    is_soft: `[B, T]` bool, canvas positions that take theirs. time: `[B]` fp32, the level of noise that is told to them.
    """

    embedding: Tensor
    column: Tensor
    is_soft: Tensor
    time: Tensor


@dataclass(frozen=True)
class Renoise:
    """How chosen tokens become the simplex that the next forward pass reads: sqrt(abar) of the token's corner, sqrt(1 - abar) of noise.

    tokens: `[B, R]` int64, those the pass before chose, -1 ahead of the first. signal, sigma: `[B]` fp32 of the next pass.
    seeds, steps: `[B]` int64; columns: `[R]` int64; purpose: they name the noise. noise: `[B, R, V]` fp32 in its place, for the
    sequences that `keeps` names. turn: (signal, sigma) of this pass's schedule and of the simplex it read, each `[B]`: that noise is then
    what this pass's prediction leaves of the old one, and is written back (DDIM).
    """

    tokens: Tensor
    signal: Tensor
    sigma: Tensor
    seeds: Tensor
    steps: Tensor
    columns: Tensor
    purpose: int
    noise: Tensor | None = None
    keeps: tuple[bool, ...] = ()
    turn: tuple[Tensor, Tensor, Tensor, Tensor] | None = None


class SimplexDenoisable(Protocol):
    """What a simplex denoiser needs from a model; value is k, the size of the simplex's corners."""

    value: float

    def begin(self, renoise: Renoise, counts: tuple[int, ...] | None = None) -> Tensor:
        """Return `[B, R, D]`, mean embeddings ahead of the first pass: of noise alone and the uniform prediction."""
        ...

    def read_rows(
        self,
        ids: Tensor,
        soft: SoftInput,
        positions: Tensor,
        lengths: tuple[int, ...] | Tensor,
        unread: tuple[bool, ...] | None = None,
    ) -> Tensor:
        """Return `[B, R, D]`, the hidden rows that predict `positions`; lengths and unread as in `Denoisable.read_rows`."""
        ...

    def choose(
        self,
        rows: Tensor,
        positions: Tensor,
        rule: TokenRule,
        uniforms: Tensor,
        renoise: Renoise,
        counts: tuple[int, ...] | None = None,
        guide: Any = None,
    ) -> tuple[TokenChoice, Tensor]:
        """Choose a token for each of `rows` `[B, R, D]`, renoise it, and return the mean embeddings `[B, R, D]` of the next pass.

        guide: `(sequence, logits [R, V]) -> logits`, see `SimplexDenoiser`. What is beyond counts[b] means nothing.
        """
        ...


@dataclass(frozen=True)
class StepEvent:
    """One sequence after one denoising step, as shown to a person or streamed to a client (host values, answer region only).

    token_ids: `[A]` state after the update (MASK where re-noised); predicted_ids: `[A]` what this step predicted before re-noising;
    confidences: `[A]` probability of the predicted token; status: one of "fixed", "masked", "new", "changed", "settled" per position.
    """

    index: int
    step: int
    steps: int
    token_ids: tuple[int, ...]
    predicted_ids: tuple[int, ...]
    confidences: tuple[float, ...]
    status: tuple[str, ...]
    is_last: bool
    elapsed_ms: float
    text: str = ""


@dataclass(frozen=True)
class GenerationResult:
    """What one request produced.

    confidences and step_map cover the answer region; step_map holds (first set, last changed) step per position, -1 where never.
    nfe counts forward evaluations (classifier-free guidance counts two a step); tpf is answer tokens before EOS per evaluation.
    finish_reason is "eos", "length" or "stop". timings holds milliseconds: first_step_ms, total_ms.
    """

    text: str
    token_ids: tuple[int, ...]
    confidences: tuple[float, ...]
    step_map: tuple[tuple[int, int], ...]
    nfe: int
    tpf: float
    steps: int
    stopped_early: bool
    finish_reason: str
    timings: Mapping[str, float]
    model: str
    adapter: str | None
    profile: str
    seed: int
    dtype: str
    device: str
    ops: Mapping[str, str]
    precision: str = "auto"
