"""Prompts continued token by token: the straight line of the autoregressive baseline, from text to what each row became."""

from __future__ import annotations

import time
from collections.abc import Sequence

from .config import SamplingParams
from .contracts import Canvas, ModelFacts
from .denoisers.autoregressive import AutoregressiveDecoder, AutoregressiveState
from .errors import ConfigError, RequestError
from .runtime.readout import Outcome, read_outcome
from .runtime.runner import steps
from .text.canvas import lay_out
from .text.codec import TextCodec
from .text.formats import PromptDefaults
from .text.prompts import Prompt

# Decoding families whose checkpoints are no language models from left to right any more.
BIDIRECTIONAL = ("masked", "simplex")

Request = tuple[str | Prompt, SamplingParams]


def continue_prompts(
    requests: Sequence[Request], decoder: AutoregressiveDecoder, codec: TextCodec, facts: ModelFacts, eos_ids: tuple[int, ...], device: str
) -> list[tuple[Outcome, Canvas, dict[str, float]]]:
    """Decode a batch of requests with the base alone.

    Returns:
        One (outcome, canvas, timings) per request; the canvas is the prompt and as many open positions as the answer may have.
    Raises:
        RequestError: a prompt brings a draft or an infill, or cannot be laid out.
        ConfigError: the checkpoint was trained to look both ways, or a suppressed token is none of the vocabulary.
    """
    if facts.decoding in BIDIRECTIONAL:
        raise ConfigError(f"autoregressive: this checkpoint decodes as {facts.decoding}, expected a causal base. Leave it out.")
    canvases = [_lay_out(prompt, one, codec, facts) for prompt, one in requests]
    params = [one for _, one in requests]
    started = time.perf_counter()
    prompts = [canvas.ids[: canvas.answer_start].tolist() for canvas in canvases]
    state = decoder.begin(prompts, params, stop_ids=eos_ids, device=device)
    first_step_ms = (time.perf_counter() - started) * 1e3
    _end_at_stop_words(state, params, codec)
    if not bool(state.done.all()):
        for _ in steps(decoder, state):
            _end_at_stop_words(state, params, codec)
    timings = {"first_step_ms": first_step_ms, "total_ms": (time.perf_counter() - started) * 1e3}
    return [(read_outcome(state, index), canvas, timings) for index, canvas in enumerate(canvases)]


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
