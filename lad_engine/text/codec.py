"""The tokenizer of a checkpoint folder: encode, decode, the chat template, and the id of a one-piece word."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
from tokenizers import Tokenizer

from ..errors import AdapterError, CheckpointError, RequestError
from .chat_template import ChatTemplate

SPECIAL_NAMES = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")


class TextCodec:
    """Text to ids and back for one checkpoint; nothing is added or stripped unless a method says so.

    bos_id, eos_id, mask_id: None where the tokenizer names none. has_chat_template: whether conversations can be written.
    """

    def __init__(self, tokenizer: Tokenizer, special_tokens: Mapping[str, str], chat_template: str | None = None, name: str = "") -> None:
        self._tokenizer = tokenizer
        self._special_tokens = dict(special_tokens)
        self._chat_source = chat_template
        self.name = name
        self.bos_id = self._special_id("bos_token")
        self.eos_id = self._special_id("eos_token")
        self.mask_id = self._special_id("mask_token")
        self.has_chat_template = chat_template is not None
        # SentencePiece vocabularies put a word-start mark before the first piece of every separately encoded text.
        first = self.encode("a")
        self._marks_start = bool(first) and (tokenizer.id_to_token(first[0]) or "").startswith("\u2581")

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`; no BOS or EOS is added, special tokens written out in `text` are recognised.

        Raises:
            RequestError: it holds what UTF-8 cannot, as bytes a shell could not decode do.
        """
        try:
            return self._tokenizer.encode(text, add_special_tokens=False).ids
        except TypeError as error:
            raise RequestError(f"text: {text[:40]!r} holds bytes that are not UTF-8, expected text. Convert it.") from error

    def encode_continuation(self, text: str) -> list[int]:
        """Return the ids of `text` as it stands behind other text: no word-start mark is added in front."""
        if not self._marks_start or not text:
            return self.encode(text)
        anchor = self.encode("\n")
        ids = self.encode("\n" + text)
        return ids[len(anchor) :] if ids[: len(anchor)] == anchor else self.encode(text)

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Return the text of `ids`, special tokens left out unless asked for."""
        return self._tokenizer.decode([int(index) for index in ids], skip_special_tokens=skip_special)

    def piece(self, index: int) -> str:
        """Return how one id reads inside a text, its leading space included (for showing a canvas token by token)."""
        token = self._tokenizer.id_to_token(int(index))
        if token is None:
            return f"<{int(index)}>"
        if self._marks_start and token.startswith("\u2581"):
            return " " + self.decode([index], skip_special=False).lstrip(" ")
        return self.decode([index], skip_special=False)

    def piece_id(self, piece: str) -> int:
        """Return the id of `piece`; AdapterError when it is not exactly one token of this tokenizer."""
        ids = self.encode(piece)
        if len(ids) == 1:
            return ids[0]
        shown = ", ".join(repr(self.decode([index], skip_special=False)) for index in ids) or "nothing"
        raise AdapterError(
            f"mask token: {piece!r} is {len(ids)} tokens of this tokenizer ({shown}), expected exactly 1. "
            "Use the base model this adapter was trained on, or a mask token that is one piece."
        )

    def render_chat(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
        """Return `messages` in the model's own chat template; RequestError where it has none or refuses them."""
        if self._chat_source is None:
            raise RequestError("chat format: this tokenizer has no chat template, expected one. Use format raw or space.")
        return self._chat_template.render(messages, add_generation_prompt)

    @cached_property
    def _chat_template(self) -> ChatTemplate:
        try:
            return ChatTemplate(self._chat_source or "", self._special_tokens)
        except jinja2.TemplateError as error:
            raise CheckpointError(f"chat template of {self.name}: {error}, expected valid Jinja. Use format raw or space.") from error

    def _special_id(self, name: str) -> int | None:
        text = self._special_tokens.get(name)
        return None if text is None else self._tokenizer.token_to_id(text)


def load_tokenizer(folder: str | Path) -> TextCodec:
    """Open the tokenizer of a checkpoint folder; CheckpointError names what is missing or unreadable.

    tokenizer.json is read directly (0.15 s); transformers, whose import and AutoTokenizer cost 3 to 7 s, is only used to convert
    a folder that has no tokenizer.json.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"tokenizer: {folder} is not a folder, expected a checkpoint folder. Check the path.")
    settings = _read_json(folder / "tokenizer_config.json")
    specials = _special_tokens({**_read_json(folder / "special_tokens_map.json"), **settings})
    template = _chat_source(folder, settings)
    file = folder / "tokenizer.json"
    if file.is_file():
        try:
            tokenizer = Tokenizer.from_file(str(file))
        # The tokenizers library raises plain Exception for every unreadable file.
        except Exception as error:
            raise CheckpointError(f"tokenizer: {file} cannot be read ({error}), expected a tokenizers file. Fetch it again.") from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return TextCodec(tokenizer, specials, template, folder.name)
    return _convert(folder, specials, template)


def _convert(folder: Path, specials: dict[str, str], template: str | None) -> TextCodec:
    if not any((folder / name).is_file() for name in ("tokenizer.model", "vocab.json", "tokenizer_config.json")):
        raise CheckpointError(
            f"tokenizer: {folder} holds no tokenizer.json, expected the tokenizer's files beside the weights. Copy them there."
        )
    from transformers import AutoTokenizer

    try:
        slow = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        tokenizer = Tokenizer.from_str(slow.backend_tokenizer.to_str())
    except (OSError, ValueError, ImportError, AttributeError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"tokenizer: {folder} cannot be converted ({reason}), expected a tokenizer.json. Save one there.") from error
    specials = {**_special_tokens(slow.special_tokens_map), **specials}
    return TextCodec(tokenizer, specials, template or getattr(slow, "chat_template", None), folder.name)


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"tokenizer: {file} cannot be read ({error}), expected JSON. Fetch it again.") from error
    return values if isinstance(values, dict) else {}


def _special_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return names to text; a token may be stored as its text or as an object with a "content" field."""
    texts = {
        name: value.get("content") if isinstance(value, Mapping) else value for name, value in settings.items() if name in SPECIAL_NAMES
    }
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _chat_source(folder: Path, settings: Mapping[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"tokenizer: {file} cannot be read ({error}), expected Jinja in UTF-8. Fetch it again.") from error
    source = settings.get("chat_template")
    if isinstance(source, list):
        # Several named templates: the one called default is the conversation's.
        source = {entry.get("name"): entry.get("template") for entry in source}.get("default")
    return source if isinstance(source, str) else None
