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
from ..engine import Engine
from ..errors import ConfigError, LadError
from ..text.prompts import Prompt
from .likelihood import exact, masked
from .measure import BOUNDED

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

BATCH = 8
log = logging.getLogger(__name__)


@register_model("lad_engine")
class LadEngineLM(LM):
    """Generation by diffusion (or by the base token by token), log-likelihood from masked copies (or exact).

    Context is raw text behind the tokenizer's BOS, as lm-eval gives it; with `--apply_chat_template` it is the checkpoint's own template.
    A likelihood of a text alone conditions on BOS, else on the end token. Texts longer than the window are scored in blocks.
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
            prompts = [Prompt(request.args[0], format="raw") for request in batch]
            params = [self._params(dict(request.args[1])) for request in batch]
            decode = self.engine.generate_autoregressive if self.is_autoregressive else self.engine.generate
            texts += [result.text for result in decode(prompts, params)]
        return texts

    def _score(self, front: list[int], answer: list[int], key: str) -> tuple[float, bool]:
        if not answer:
            return 0.0, True
        if self.is_autoregressive:
            return exact(self.engine, front, answer)
        if self.engine.family not in BOUNDED:
            raise ConfigError(
                f"lm-eval: a likelihood task is asked of a checkpoint that decodes as {self.engine.family}, expected one of "
                f"{', '.join(BOUNDED)}. Choose tasks that generate."
            )
        return masked(self.engine, front, answer, self.copies, key)

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
        if "max_gen_toks" in asked:
            settings["max_new_tokens"] = int(asked["max_gen_toks"])
        if asked.get("do_sample") and asked.get("temperature"):
            settings.update({name: asked[name] for name in ("temperature", "top_k", "top_p") if name in asked})
        settings.update(self.sampling)
        if self.is_autoregressive:
            return SamplingParams.from_mapping({**AUTOREGRESSIVE_DEFAULTS, **settings})
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
