"""From what a caller asked to canvases: the checks that need the loaded base, then the layout."""

from __future__ import annotations

from collections.abc import Sequence

from .config import SamplingParams
from .contracts import AdapterFacts, Canvas, ModelFacts
from .errors import ConfigError, RequestError
from .families import check_params
from .text.canvas import lay_out
from .text.codec import TextCodec
from .text.formats import PromptDefaults, prompt_ids
from .text.prompts import Prompt


def check_batch(params: Sequence[SamplingParams], facts: ModelFacts, decoding: str) -> None:
    """Raise ConfigError where a parameter is none of the decoding family's, or names a token beyond the vocabulary."""
    for one in params:
        check_params(decoding, one)
        unknown = [token for token in one.suppress_tokens if not 0 <= token < facts.vocab_size]
        if unknown:
            raise ConfigError(f"suppress_tokens: id {unknown[0]} is given, expected 0 to {facts.vocab_size - 1} (the base's vocabulary).")
        # The mask is never chosen either.
        if len(set(one.suppress_tokens)) >= facts.vocab_size - 1:
            raise ConfigError("suppress_tokens: every token is suppressed, expected one at least that may be chosen. Leave some out.")


def check_canvas(canvas: Canvas, facts: ModelFacts) -> Canvas:
    """Return a canvas that the caller laid out; RequestError where the model cannot read it (the family checks what is open)."""
    if canvas.ids.ndim != 1 or not 0 < canvas.length <= facts.max_positions:
        raise RequestError(
            f"canvas: ids are {canvas.ids.shape}, expected 1 to {facts.max_positions} positions (the model's window). Shorten it."
        )
    if not 0 <= int(canvas.ids.min()) <= int(canvas.ids.max()) < facts.vocab_size:
        raise RequestError(f"canvas: a token id is outside the base's vocabulary, expected 0 to {facts.vocab_size - 1}.")
    return canvas


def lay_out_request(
    prompt: str | Prompt,
    params: SamplingParams,
    adapter: AdapterFacts | None,
    codec: TextCodec,
    facts: ModelFacts,
    decoding: str,
    mask_id: int,
) -> Canvas:
    """Lay one request out.

    Raises:
        RequestError: it does not fit the window or the vocabulary, or brings a draft that nothing would read.
    """
    canvas = lay_out(
        prompt,
        codec,
        adapter or prompt_defaults(facts, codec),
        max_new_tokens=params.max_new_tokens,
        max_positions=facts.max_positions,
        mask_id=mask_id,
    )
    largest = int(canvas.ids.max())
    if largest >= facts.vocab_size:
        raise RequestError(
            f"prompt: token id {largest} is beyond the base's vocabulary, expected less than {facts.vocab_size}. "
            "The tokenizer's files do not belong to these weights."
        )
    if decoding == "lad" and params.noise_start == 1 and (canvas.is_open & (canvas.ids != mask_id)).any():
        raise RequestError(
            "draft: noise_start is 1, which hides all of it before the first step, expected less. "
            "Give noise_start (--noise-start 0.3), or leave the draft out."
        )
    return canvas


def lay_out_scored(
    prompt: str | Prompt, continuation: str, adapter: AdapterFacts | None, codec: TextCodec, facts: ModelFacts, decoding: str
) -> tuple[list[int], list[bool]]:
    """Return the ids of prompt and continuation, and which of them belong to the continuation.

    Raises:
        ConfigError: the model is no masked one. RequestError: the continuation is empty, or both do not fit the window.
    """
    if decoding != "masked":
        raise ConfigError(f"score: this engine decodes as {decoding}, expected masked. Load a masked diffusion model.")
    front = prompt_ids(Prompt(prompt) if isinstance(prompt, str) else prompt, codec, adapter or prompt_defaults(facts, codec))
    tail = codec.encode_continuation(continuation)
    if not tail or len(front) + len(tail) > facts.max_positions:
        raise RequestError(
            f"score: {len(front)} tokens of prompt and {len(tail)} of continuation, expected one of each at least and "
            f"{facts.max_positions} together. Shorten or fill them."
        )
    return front + tail, [False] * len(front) + [True] * len(tail)


def prompt_defaults(facts: ModelFacts, codec: TextCodec) -> PromptDefaults:
    """Return how prompts are written where there is no adapter: a base without a chat template continues plain text."""
    is_plain = facts.decoding != "lad" and not codec.has_chat_template
    return PromptDefaults(prompt_format="raw" if is_plain else "chat", predicts_next_token=facts.predicts_next_token)
