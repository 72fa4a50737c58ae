"""How likely a causal model finds an answer: perplexity per token, as a measure of fluency."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..text.formats import PromptDefaults, prompt_ids
from ..text.prompts import Prompt
from .likelihood import exact

if TYPE_CHECKING:
    from ..engine import Engine


class Judge:
    """A causal checkpoint without an adapter, reading a question in its own chat template, or as a line of plain text where it has none."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def score(self, question: str, answer: str) -> tuple[float, int]:
        """Return (loss in nats, tokens) of `answer` behind `question`; (0, 0) for an empty answer.

        The end of the text is not scored, so that an answer cut at its length limit is judged by the words it has.
        """
        engine = self.engine
        asked = Prompt(question) if engine.codec.has_chat_template else Prompt(f"{question}\n", format="raw")
        front = prompt_ids(asked, engine.codec, PromptDefaults())
        ids = engine.codec.encode_continuation(answer)
        if not ids:
            return 0.0, 0
        return -exact(engine, front, ids)[0], len(ids)
