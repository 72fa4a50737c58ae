"""The engine as a model of EleutherAI's lm-eval: `python -m lad_engine.evaluation.lm_harness --model lad_engine --tasks ...`.

lm-eval looks for no plug-ins, so this module is its command line with our model registered in it; every flag is lm-eval's own.
`--model_args` take model=, adapter=, profile=, copies=, device=, dtype=, autoregressive=True, and any sampling parameter (steps=16).
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from ..config import AUTOREGRESSIVE_DEFAULTS, SamplingParams
from ..contracts import GenerationResult
from ..engine import Engine
from ..errors import ConfigError, LadError
from ..text.answer import cut_answer
from ..text.prompts import Prompt
from .likelihood import exact, masked
from .measure import BOUNDED

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

BATCH = 8
# Tokens of an answer where neither task nor caller says how many, as in lm-eval's own models; a denoiser's profile says it.
LENGTH = 256
# What tasks call that number, the first one that is there counting.
LENGTH_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
log = logging.getLogger(__name__)


@register_model("lad_engine")
class LadEngineLM(LM):
    """Generation by diffusion (or by the base token by token), log-likelihood from masked copies (or exact).

    Context is raw text behind the tokenizer's BOS, as lm-eval gives it; with `--apply_chat_template` it is the checkpoint's own template.
    A likelihood of a text alone conditions on BOS, else on the end token. Texts longer than the window are scored in blocks; of a context
    that leaves no room for its answer only the end is read, as lm-eval's own models do.
    """

    def __init__(
        self,
        model: str | None = None,
        adapter: str | None = "default",
        profile: str | None = None,
        copies: int = 8,
        device: str | None = None,
        dtype: str = "auto",
        autoregressive: bool = False,
        batch_size: int | str = BATCH,
        max_batch_size: int | None = None,
        engine: Engine | None = None,
        **sampling: Any,
    ) -> None:
        super().__init__()
        alone = autoregressive or adapter in (None, "none")
        if not isinstance(copies, int) or copies < 1:
            raise ConfigError(f"lm-eval: copies is {copies!r}, expected 1 or more. Give copies=8 in --model_args.")
        self._has_cut = False
        self.is_autoregressive, self.copies, self.profile, self.sampling = bool(autoregressive), copies, profile, sampling
        # lm-eval's command line hands a number over as text; "auto" is left to us.
        self.batch_size_per_call = (int(batch_size) if str(batch_size).isdigit() else max_batch_size or BATCH) or BATCH
        if device is not None and device.startswith("cuda") and not torch.cuda.is_available():
            # lm-eval itself says cuda:0 where nobody named a device.
            log.warning("lm-eval asks for %s and there is no CUDA here; the model runs where it can", device)
            device = None
        config = {"device": device or "auto", "dtype": dtype, **({"mask_token": None} if autoregressive else {})}
        self.engine = engine if engine is not None else Engine.load(model, adapter=None if alone else adapter, **config)
        # A wrong setting is refused before the first request.
        self._params({})

    @property
    def tokenizer_name(self) -> str:
        """What lm-eval's cache of requests names the tokenizer."""
        return self.engine.facts.name

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return a conversation in the checkpoint's own template."""
        return self.engine.codec.render_chat(chat_history, add_generation_prompt)

    def loglikelihood(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return (log-likelihood in nats, whether greedy decoding gives it) of each (context, continuation)."""
        return [self._score(*self._pair(*request.args), "/".join(request.args)) for request in requests]

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return each text's whole log-likelihood, in blocks of the window where it is longer."""
        totals = []
        for request in requests:
            (text,) = request.args
            ids, start = self.engine.codec.encode(text), self._ids([])
            room = self.engine.facts.max_positions - len(start) - 1
            blocks = [ids[at : at + room] for at in range(0, len(ids), room)]
            totals.append(sum(self._score(start, block, f"{text}/{number}")[0] for number, block in enumerate(blocks)))
        return totals

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return what follows each context, up to one of its stop words."""
        texts: list[str] = []
        for start in range(0, len(requests), self.batch_size_per_call):
            batch = requests[start : start + self.batch_size_per_call]
            params = [self._params(dict(request.args[1])) for request in batch]
            pairs = zip(batch, params, strict=True)
            prompts = [Prompt(self._end_of(request.args[0], one.max_new_tokens), format="raw") for request, one in pairs]
            decode = self.engine.generate_autoregressive if self.is_autoregressive else self.engine.generate
            texts += [self._text(result, one) for result, one in zip(decode(prompts, params), params, strict=True)]
        return texts

    def _text(self, result: GenerationResult, params: SamplingParams) -> str:
        """Return an answer as it follows its context: an indent in front belongs to it, where a program goes on."""
        engine = self.engine
        ends = {"eos_ids": engine.eos_ids, "mask_id": engine.mask_id}
        return cut_answer(engine.codec, result.token_ids, **ends, stop=params.stop, strip_left=False).text

    def _score(self, front: list[int], answer: list[int], key: str) -> tuple[float, bool]:
        if not answer:
            return 0.0, True
        # One position is the end token's.
        front = self._fitting(front, len(answer) + 1)
        if self.is_autoregressive:
            return exact(self.engine, front, answer)
        if self.engine.family not in BOUNDED:
            raise ConfigError(
                f"lm-eval: a likelihood task is asked of a checkpoint that decodes as {self.engine.family}, expected one of "
                f"{', '.join(BOUNDED)}. Choose tasks that generate."
            )
        return masked(self.engine, front, answer, self.copies, key)

    def _end_of(self, context: str, length: int) -> str:
        """Return what is read of a context whose answer gets `length` positions: all of it, or as much of its end as there is room for."""
        ids = self.engine.codec.encode(context)
        # BOS goes before it.
        kept = self._fitting(ids, length + 1)
        # Cut inside a character, its rest would read as more tokens than it was.
        return context if len(kept) == len(ids) else self.engine.codec.decode(kept, skip_special=False).lstrip("\ufffd")

    def _fitting(self, ids: list[int], others: int) -> list[int]:
        """Return the last ids that fit into the window beside `others` more; what is too long by itself is refused where it is read."""
        room = max(self.engine.facts.max_positions - others, 1)
        if len(ids) > room and not self._has_cut:
            self._has_cut = True
            log.warning("lm-eval: a context of %d tokens is too long for the window; of it and others like it the end is read", len(ids))
        return ids[-room:]

    def _pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Return the ids of both, split where they are together; a space at the end of the context belongs to the continuation.

        So does a token that reaches over the seam, which the context alone would not have.
        """
        whole, front = self.engine.codec.encode(context + continuation), self.engine.codec.encode(context.rstrip())
        pairs = enumerate(zip(whole, front, strict=False))
        seam = next((place for place, (one, other) in pairs if one != other), min(len(whole), len(front)))
        return self._ids(front[:seam]), whole[seam:]

    def _ids(self, ids: list[int]) -> list[int]:
        """Return the ids of a text's beginning, with the token that every text begins with."""
        codec = self.engine.codec
        start = codec.bos_id if codec.bos_id is not None else codec.eos_id
        if start is None and not ids:
            raise ConfigError("lm-eval: the context is empty and this tokenizer has neither BOS nor EOS, expected one to begin with.")
        return ids if ids[:1] == [start] or (codec.bos_id is None and ids) else [start, *ids]

    def _params(self, asked: dict[str, Any]) -> SamplingParams:
        """Return the sampling parameters of one request: lm-eval's generation settings, and over them what the caller fixed."""
        settings: dict[str, Any] = {}
        until = asked.get("until") or ()
        settings["stop"] = tuple(word for word in ((until,) if isinstance(until, str) else until) if word)
        length = next((asked[name] for name in LENGTH_NAMES if asked.get(name) is not None), None)
        if length is not None:
            settings["max_new_tokens"] = int(length)
        if asked.get("do_sample") is not False and asked.get("temperature"):
            settings.update({name: asked[name] for name in ("temperature", "top_k", "top_p") if name in asked})
        settings.update(self.sampling)
        if self.is_autoregressive:
            return SamplingParams.from_mapping({**AUTOREGRESSIVE_DEFAULTS, "max_new_tokens": LENGTH, **settings})
        return self.engine.sampling(self.profile, **settings)


def main() -> int:
    """Run lm-eval's command line; 2 with one sentence after a mistake of the caller."""
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except LadError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
