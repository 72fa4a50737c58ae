"""The fixed part of a canvas: a conversation as ids, in the model's chat template, the LAD Space's Llama format, or as it stands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..errors import RequestError
from .codec import TextCodec
from .prompts import FORMATS, Prompt

SPACE_SYSTEM_PROMPT = "You are a helpful assistant."
SPACE_MARKERS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>")


class PromptNeeds(Protocol):
    """What an adapter says about its prompts; `AdapterFacts` has these fields."""

    prompt_format: str
    system_prompt: str | None
    predicts_next_token: bool
    eos_id: int | None


@dataclass(frozen=True)
class PromptDefaults:
    """The same facts where there is no adapter."""

    prompt_format: str = "chat"
    system_prompt: str | None = None
    predicts_next_token: bool = False
    eos_id: int | None = None


def chosen_format(prompt: Prompt, needs: PromptNeeds) -> str:
    """Return the format of this request; RequestError where it is unknown."""
    name = prompt.format or needs.prompt_format
    if name not in FORMATS:
        raise RequestError(f"prompt: format is {name!r}, expected one of {', '.join(FORMATS)}. Use one of them.")
    return name


def prompt_ids(prompt: Prompt, codec: TextCodec, needs: PromptNeeds) -> list[int]:
    """Return the ids in front of the answer region."""
    return _RENDERERS[chosen_format(prompt, needs)](prompt, codec, needs)


def _chat_ids(prompt: Prompt, codec: TextCodec, needs: PromptNeeds) -> list[int]:
    turns = _turns_of_a_question(prompt, needs.system_prompt, "chat")
    return codec.encode(codec.render_chat(turns))


def _space_ids(prompt: Prompt, codec: TextCodec, needs: PromptNeeds) -> list[int]:
    """The Space's text (spec LAD, 1.2): no end-of-turn tokens, and the newline behind the last header is an answer token."""
    missing = [marker for marker in SPACE_MARKERS if len(codec.encode(marker)) != 1]
    if missing:
        raise RequestError(
            f"space format: {missing[0]} is not one token of this tokenizer, expected a Llama 3 vocabulary. Use format chat."
        )
    turns = _turns_of_a_question(prompt, needs.system_prompt or SPACE_SYSTEM_PROMPT, "space")
    body = "".join(f"{_header(turn['role'])}\n{turn['content']}\n" for turn in turns)
    return codec.encode(f"<|begin_of_text|>\n{body}{_header('assistant')}")


def _raw_ids(prompt: Prompt, codec: TextCodec, needs: PromptNeeds) -> list[int]:
    if prompt.messages is not None:
        raise RequestError("raw format: messages are given, expected one text. Use format chat for a conversation.")
    if prompt.system is not None:
        raise RequestError("raw format: a system prompt is given, expected the text alone. Write it into the text or use format chat.")
    ids = codec.encode(prompt.text) if prompt.text is not None else []
    start = codec.bos_id
    if start is None and not ids and needs.predicts_next_token:
        # Position 0 has no row that predicts it; without a BOS the end token stands for "a text begins here".
        start = codec.eos_id
        if start is None:
            raise RequestError(
                "raw format: this tokenizer has neither BOS nor EOS, expected a token in front of the first gap. Give a PROMPT."
            )
    return ids if start is None or ids[:1] == [start] else [start, *ids]


_RENDERERS: dict[str, Callable[[Prompt, TextCodec, PromptNeeds], list[int]]] = {"chat": _chat_ids, "space": _space_ids, "raw": _raw_ids}


def _turns_of_a_question(prompt: Prompt, system: str | None, name: str) -> Sequence[dict[str, str]]:
    turns = prompt.turns(system)
    if not turns:
        raise RequestError(f"{name} format: only an infill is given, expected the user's turn too. Give a PROMPT or use format raw.")
    return turns


def _header(role: str) -> str:
    return f"<|start_header_id|>{role}<|end_header_id|>"
