"""One submitted request as the device thread keeps it, and the part of its text that is settled."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..adapters.store import Resident
from ..config import SamplingParams
from ..contracts import Canvas
from ..errors import LadError
from ..text.prompts import Prompt
from .engine_parts import EngineParts
from .events import Event

# Called on the device thread with each event, and at last with Finished or with why there is none.
Deliver = Callable[[Event | LadError], None]


@dataclass(eq=False)
class Request:
    """Waiting, then running, then ended exactly once.

    resident: what it is computed with, from its start on; before, what it was laid out for. deadline: on the monotonic clock.
    next_step: the first step that was not reported yet (a batch that failed begins again). retries: begun again for want of memory.
    """

    id: str
    prompt: str | Prompt | Canvas
    params: SamplingParams
    canvas: Canvas
    adapter: str | None
    resident: Resident | None
    wants: str
    client: str
    deadline: float | None
    deliver: Deliver
    submitted: float
    started: float | None = None
    first_step: float | None = None
    is_cancelled: bool = False
    has_ended: bool = False
    next_step: int = 0
    retries: int = 0
    settled: SettledText | None = None

    @property
    def tokens(self) -> int:
        """Canvas positions it takes while it runs."""
        return self.canvas.length

    @property
    def queued_ms(self) -> float:
        return ((self.started or time.monotonic()) - self.submitted) * 1e3


class SettledText:
    """The text of a request that no later step can change: from its first token to the first hidden one, where tokens stay.

    What might still turn into a stop string, or into another letter, is held back.
    """

    def __init__(self, parts: EngineParts, canvas: Canvas, params: SamplingParams) -> None:
        self._parts, self._canvas, self._params = parts, canvas, params
        # Under these rules a position that shows a token keeps it.
        self.can_settle = params.remasking == "transfer" or parts.engine.family == "masked"
        self._count = 0
        self._sent = ""

    def grown(self, frame: Any, slot: int) -> str:
        """Return what settled since it was last asked."""
        if not self.can_settle:
            return ""
        ids = frame.answer[slot, : self._canvas.answer_length].tolist()
        count = next((index for index, token in enumerate(ids) if token == frame.mask_id), len(ids))
        if count <= self._count:
            return ""
        self._count = count
        text = self._parts.answer(ids[:count], self._canvas, self._params).rstrip("\ufffd")
        held = max((len(word) - 1 for word in self._params.stop), default=0)
        return self._send(text[: max(0, len(text) - held)])

    def rest(self, text: str) -> str:
        """Return what of the result's text was not sent yet."""
        return self._send(text)

    def _send(self, text: str) -> str:
        if not text.startswith(self._sent):
            return ""
        new, self._sent = text[len(self._sent) :], text
        return new
