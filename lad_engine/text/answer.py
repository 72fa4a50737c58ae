"""The final answer of a decoded region: cut at the first end token or stop string."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from .codec import TextCodec


@dataclass(frozen=True)
class Answer:
    """text: what a reader sees; length: answer tokens it was made from; finish_reason: "eos", "stop" or "length"."""

    text: str
    length: int
    finish_reason: str


def cut_answer(
    codec: TextCodec,
    ids: Sequence[int],
    *,
    eos_ids: Collection[int],
    mask_id: int,
    stop: Sequence[str] = (),
    not_before: int = 0,
    strip_left: bool = True,
) -> Answer:
    """Return the answer held by the ids of an answer region `[A]`.

    MASK positions are left out; the first EOS at index `not_before` or later ends the text (see `canvas.fixed_length`: an infill must not
    lose the fixed words behind a gap); the first stop string ends it earlier and is not part of it.
    """
    ends = (index for index, token in enumerate(ids) if token in eos_ids and index >= not_before)
    end = next(ends, len(ids))
    reason = "eos" if end < len(ids) else "length"
    kept = [token for token in ids[:end] if token != mask_id and token not in eos_ids]
    text = codec.decode(kept)
    cut = min((at for at in (text.find(word) for word in stop if word) if at >= 0), default=-1)
    if cut >= 0:
        # The shortest run of tokens that already shows a stop string; decoding grows with the run, so bisect.
        shown = range(1, len(kept) + 1)
        length = 1 + bisect_left(shown, True, key=lambda n: any(word in codec.decode(kept[:n]) for word in stop if word))
        text, kept, reason = text[:cut], kept[:length], "stop"
    return Answer(text.lstrip() if strip_left else text, len(kept), reason)
