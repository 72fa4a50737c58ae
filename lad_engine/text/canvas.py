"""A prompt laid out as a canvas: which ids stand where, and which positions may change."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from ..contracts import Canvas
from ..errors import RequestError
from .codec import TextCodec
from .formats import PromptNeeds, chosen_format, prompt_ids
from .infill import Span, parse_infill
from .prompts import Prompt


def lay_out(
    prompt: Prompt | str,
    codec: TextCodec,
    needs: PromptNeeds,
    *,
    max_new_tokens: int,
    max_positions: int,
    mask_id: int,
) -> Canvas:
    """Return the canvas of one request.

    Args:
        needs: the adapter's facts (or `formats.PromptDefaults`): prompt format, system prompt, prediction shift, end token.
        max_new_tokens: answer positions; an infill brings its own length. max_positions: longest canvas the model can read.
    Returns:
        `ids` `[T]` int64 with MASK in every open position that has no draft token, `is_open` `[T]`, and where the answer begins.
        A draft is a whole answer: the positions behind it hold the end token, as in training. In chat and space format the end token
        behind an infill is fixed.
    Raises:
        RequestError: empty prompt, no chat template, a draft or canvas longer than there is room (the numbers are in the sentence).
    """
    prompt = Prompt(prompt) if isinstance(prompt, str) else prompt
    front = prompt_ids(prompt, codec, needs)
    end_id = needs.eos_id if needs.eos_id is not None else codec.eos_id
    if prompt.infill is not None:
        ends = end_id if chosen_format(prompt, needs) != "raw" else None
        follows_text = chosen_format(prompt, needs) != "raw" or prompt.text is not None
        spans = _encoded_spans(parse_infill(prompt.infill), codec, follows_text)
        _check_window(len(front), sum(size for _, size, _ in spans) + (ends is not None), max_positions, "Shorten the prompt or the infill")
        answer, is_open = _infill_region(spans, mask_id, ends)
    else:
        room = max_positions - len(front)
        advice = f"Lower max_new_tokens to {room} or shorten the prompt" if room > 0 else "Shorten the prompt"
        _check_window(len(front), max_new_tokens, max_positions, advice)
        answer = _draft_region(prompt, codec, needs, max_new_tokens, mask_id, end_id)
        is_open = [True] * len(answer)
    return Canvas(
        ids=np.asarray(front + answer, dtype=np.int64),
        is_open=np.asarray([False] * len(front) + is_open, dtype=bool),
        answer_start=len(front),
    )


def fixed_length(canvas: Canvas, eos_ids: Collection[int]) -> int:
    """Return how many answer positions lead up to the last fixed word; an EOS chosen in a gap before it does not end the text."""
    answer = zip(canvas.ids[canvas.answer_start :].tolist(), canvas.is_open[canvas.answer_start :].tolist(), strict=True)
    fixed = [index for index, (token, is_open) in enumerate(answer) if not is_open and token not in eos_ids]
    return fixed[-1] + 1 if fixed else 0


def _draft_region(prompt: Prompt, codec: TextCodec, needs: PromptNeeds, max_new_tokens: int, mask_id: int, end_id: int | None) -> list[int]:
    if prompt.draft is None:
        return [mask_id] * max_new_tokens
    # In the Space's format the newline behind the header is the answer's first token.
    text = "\n" + prompt.draft if chosen_format(prompt, needs) == "space" else prompt.draft
    draft = codec.encode_continuation(text)
    if len(draft) > max_new_tokens:
        raise RequestError(f"draft: it is {len(draft)} tokens, expected at most max_new_tokens={max_new_tokens}. Raise max_new_tokens.")
    return draft + [mask_id if end_id is None else end_id] * (max_new_tokens - len(draft))


def _encoded_spans(spans: list[Span], codec: TextCodec, follows_text: bool) -> list[tuple[list[int], int, bool]]:
    """Return (ids, positions, is_open) of every span."""
    encoded: list[tuple[list[int], int, bool]] = []
    for span in spans:
        # Only the very first word of a text may carry the tokenizer's word-start mark.
        encode = codec.encode_continuation if encoded or follows_text else codec.encode
        ids = encode(span.text) if span.text else []
        size = len(ids) if span.size is None else span.size
        if len(ids) > size:
            raise RequestError(f"infill: a gap's words are {len(ids)} tokens, expected at most its {size} positions. Widen the gap.")
        encoded.append((ids, size, span.is_open))
    return encoded


def _infill_region(spans: list[tuple[list[int], int, bool]], mask_id: int, end_id: int | None) -> tuple[list[int], list[bool]]:
    ids: list[int] = []
    is_open: list[bool] = []
    for part, size, open_span in spans:
        ids += part + [mask_id] * (size - len(part))
        is_open += [open_span] * size
    if end_id is not None:
        ids.append(end_id)
        is_open.append(False)
    return ids, is_open


def _check_window(prompt: int, answer: int, max_positions: int, advice: str) -> None:
    if prompt + answer > max_positions:
        raise RequestError(
            f"prompt: {prompt} prompt and {answer} answer positions make {prompt + answer}, expected at most {max_positions} "
            f"(the model's window). {advice}."
        )
