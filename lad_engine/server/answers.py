"""Answers in OpenAI's shapes, with what a refinement adds under the name `lad`; and the logprobs made from confidences."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from ..backend import Finished
from ..contracts import GenerationResult
from ..engine import Engine
from .service import Asked

# The logarithm of a confidence of zero, as OpenAI writes it.
NO_LOGPROB = -9999.0
REASONS = {"eos": "stop", "stop": "stop", "length": "length"}


@dataclasses.dataclass(frozen=True)
class Shape:
    """How one endpoint writes: the object's names, whole and in pieces, and the prefix of its ids."""

    whole: str
    piece: str
    prefix: str

    def choice(self, text: str, reason: str | None, logprobs: Any) -> dict[str, Any]:
        """Return one choice of a whole answer."""
        if self is CHAT:
            message = {"role": "assistant", "content": text, "refusal": None}
            return {"index": 0, "message": message, "logprobs": logprobs, "finish_reason": reason}
        return {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def delta(self, text: str | None, reason: str | None, role: str | None = None, logprobs: Any = None) -> dict[str, Any]:
        """Return one choice of a chunk."""
        if self is CHAT:
            delta = {"role": role} if role else {}
            if text is not None:
                delta["content"] = text
            return {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return {"index": 0, "text": text or "", "logprobs": logprobs, "finish_reason": reason}


CHAT = Shape("chat.completion", "chat.completion.chunk", "chatcmpl")
COMPLETION = Shape("text_completion", "text_completion", "cmpl")
EDIT = Shape("edit", "edit.chunk", "edit")


def whole(shape: Shape, asked: Asked, done: Finished, engine: Engine, wants_logprobs: bool) -> dict[str, Any]:
    """Return the answer of a request that did not stream."""
    result = done.result
    logprobs = logprobs_of(shape, result, engine) if wants_logprobs else None
    return {
        "id": f"{shape.prefix}-{done.request_id}",
        "object": shape.whole,
        "created": asked.created,
        "model": asked.model,
        "choices": [shape.choice(result.text, REASONS[result.finish_reason], logprobs)],
        "usage": usage(asked, result),
        "lad": details(asked, done),
    }


def usage(asked: Asked, result: GenerationResult) -> dict[str, int]:
    """Return the counts: the prompt's tokens, and the answer's before its end."""
    answer = answer_tokens(result)
    return {"prompt_tokens": asked.handle.prompt_tokens, "completion_tokens": answer, "total_tokens": asked.handle.prompt_tokens + answer}


def answer_tokens(result: GenerationResult) -> int:
    """Return how many tokens the answer's text is made of."""
    return round(result.tpf * result.nfe)


def details(asked: Asked, done: Finished) -> dict[str, Any]:
    """Return how an answer came about, with every parameter that differs from its default."""
    result = done.result
    params = {
        field.name: getattr(asked.params, field.name)
        for field in dataclasses.fields(asked.params)
        if getattr(asked.params, field.name) != field.default
    }
    return {
        "adapter": result.adapter,
        "adapter_version": done.adapter_version,
        "base": result.model,
        "profile": result.profile,
        "seed": result.seed,
        "nfe": result.nfe,
        "tpf": round(result.tpf, 4),
        "steps": result.steps,
        "stopped_early": result.stopped_early,
        "finish_reason": result.finish_reason,
        "queued_ms": round(done.queued_ms, 3),
        "run_ms": round(done.run_ms, 3),
        "params": params,
    }


def logprobs_of(shape: Shape, result: GenerationResult, engine: Engine) -> dict[str, Any]:
    """Return OpenAI's logprobs, made from confidences.

    They are the logarithms of what the last prediction of each token gave it, seeing the whole canvas; they are not the factors of the
    answer's probability, as an autoregressive model's are.
    """
    rows = []
    for token, confidence in zip(result.token_ids, result.confidences, strict=True):
        # The text is made of no more: a stop string may end it, and an end token in a gap does not.
        if len(rows) == answer_tokens(result):
            break
        if token != engine.mask_id and token not in engine.eos_ids:
            piece = engine.codec.piece(token)
            rows.append((piece, math.log(confidence) if confidence > 0 else NO_LOGPROB))
    if shape is CHAT:
        content = [{"token": piece, "logprob": value, "bytes": list(piece.encode()), "top_logprobs": []} for piece, value in rows]
        return {"content": content, "refusal": None}
    offsets, at = [], 0
    for piece, _ in rows:
        offsets.append(at)
        at += len(piece)
    return {
        "tokens": [piece for piece, _ in rows],
        "token_logprobs": [value for _, value in rows],
        "top_logprobs": None,
        "text_offset": offsets,
    }
