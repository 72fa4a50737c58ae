"""What a caller asks: a text or a conversation, with an optional system prompt, draft answer or infill."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ..errors import RequestError

FORMATS = ("chat", "space", "raw")
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Prompt:
    """One request, before it becomes a canvas.

    text: the user's turn, or the raw text. messages: a conversation instead, ({"role": ..., "content": ...}, ...), ending with the user.
    system: system prompt (None: the adapter's, else the template's own). draft: an answer to refine. infill: an answer with gaps,
    see `text.infill`. format: "chat", "space" or "raw" (None: the adapter's).
    Raises RequestError on an empty prompt, unknown roles, or parts that exclude each other.
    """

    text: str | None = None
    messages: tuple[Mapping[str, str], ...] | None = None
    system: str | None = None
    draft: str | None = None
    infill: str | None = None
    format: str | None = None

    def __post_init__(self) -> None:
        for name in ("text", "system", "draft", "infill", "format"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise RequestError(f"prompt: {name} is {type(value).__name__}, expected text. Quote it.")
            if value is not None and not is_unicode(value):
                raise RequestError(f"prompt: {name} holds bytes that are not UTF-8, expected text. Convert it.")
        if self.text is not None and not self.text.strip():
            raise RequestError("prompt: the text is empty, expected at least one word. Give a prompt.")
        if self.text is not None and self.messages is not None:
            raise RequestError("prompt: text and messages are both given, expected one of them. Put the text in a user message.")
        if self.text is None and self.messages is None and self.infill is None:
            raise RequestError("prompt: nothing is given, expected a text, messages or an infill. Give one.")
        if self.draft is not None and self.infill is not None:
            raise RequestError("prompt: draft and infill are both given, expected one of them. Write a draft inside a gap as [[8:words]].")
        for name in ("draft", "infill"):
            if getattr(self, name) is not None and not getattr(self, name).strip():
                raise RequestError(f"prompt: the {name} is empty, expected at least one word. Leave it out or fill it.")
        if self.format is not None and self.format not in FORMATS:
            raise RequestError(f"prompt: format is {self.format!r}, expected one of {', '.join(FORMATS)}. Use one of them.")
        if self.messages is not None:
            object.__setattr__(self, "messages", _checked_messages(self.messages, self.system))

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Prompt:
        """Build from the names of a JSON object ("prompt" is accepted for "text"); an unknown name is an error."""
        names = {field.name for field in fields(cls)}
        values = {("text" if name == "prompt" and "text" not in values else name): value for name, value in values.items()}
        for name in values:
            if name not in names:
                close = difflib.get_close_matches(name, [*sorted(names), "prompt"], n=2)
                hint = f"Did you mean {' or '.join(close)}?" if close else f"Accepted are {', '.join(sorted(names))}."
                raise RequestError(f"prompt: {name!r} is not a field of a prompt. {hint}")
        return cls(**values)

    def turns(self, default_system: str | None) -> list[dict[str, str]]:
        """Return the whole conversation as messages, the system prompt first where there is one."""
        turns = [dict(message) for message in self.messages or ()]
        if self.text is not None:
            turns.append({"role": "user", "content": self.text})
        system = self.system if self.system is not None else default_system
        if system is not None and turns and turns[0]["role"] != "system":
            turns.insert(0, {"role": "system", "content": system})
        return turns


def is_unicode(text: str) -> bool:
    """Return whether `text` can be encoded; bytes a shell could not decode arrive as lone surrogates, which no tokenizer takes."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _checked_messages(messages: Any, system: str | None) -> tuple[dict[str, str], ...]:
    if isinstance(messages, (str, Mapping)) or not isinstance(messages, (list, tuple)) or not messages:
        raise RequestError("prompt: messages is not a list of messages, expected [{role, content}, ...]. Give at least one.")
    checked = []
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
            raise RequestError(f"prompt: message {number} is {message!r}, expected an object with role and content. Correct it.")
        role, content = message["role"], message["content"]
        if role not in ROLES:
            raise RequestError(f"prompt: message {number} has the role {role!r}, expected one of {', '.join(ROLES)}. Correct it.")
        if not isinstance(content, str) or not is_unicode(content) or (role == "user" and not content.strip()):
            raise RequestError(f"prompt: message {number} is empty or not text, expected UTF-8 text. Fill it or leave it out.")
        if role == "system" and (number > 1 or system is not None):
            raise RequestError(f"prompt: message {number} is a second system prompt, expected one at most, in front. Join them.")
        checked.append({"role": role, "content": content})
    if checked[-1]["role"] != "user":
        raise RequestError(
            f"prompt: the last message is the {checked[-1]['role']}'s, expected the user's. Give an answer to refine as draft."
        )
    return tuple(checked)
