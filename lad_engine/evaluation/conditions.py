"""Who answers and how: a condition is a model, a way of decoding and its settings; here prompts become answers under it."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import AUTOREGRESSIVE_DEFAULTS, READ_AUTOREGRESSIVELY, RENOISING, SamplingParams
from ..contracts import GenerationResult
from ..errors import ConfigError
from ..requests import prompt_defaults
from ..text.formats import prompt_ids
from ..text.prompts import Prompt
from .ledger import Row
from .sets import Example
from .tasks import WINDOW, Task

if TYPE_CHECKING:
    from ..engine import Engine

TASK_SETTINGS, ADAPTER_SETTINGS = "task", "adapter"
SAMPLED = {"temperature": 0.7, "top_p": 0.95}
GREEDY = {"temperature": 0.0}


@dataclass(frozen=True)
class Condition:
    """One column of the table.

    way: "diffusion", "autoregressive", "masked likelihood" or "exact likelihood". profile: "task" (the task's own settings), "adapter"
    (the adapter's own profile) or a profile's name; `settings` lie over it. system: the system prompt of chats that have none; the base
    alone is asked under the adapter's, so that both read the same text.
    """

    name: str
    way: str
    engine: Engine
    profile: str = TASK_SETTINGS
    settings: Mapping[str, Any] = field(default_factory=dict)
    system: str | None = None

    def asked(self, prompt: Prompt) -> Prompt:
        """Return what is asked, under this condition's system prompt where the prompt is a chat without one."""
        is_bare = prompt.format in (None, "chat") and prompt.messages is None and prompt.system is None
        return dataclasses.replace(prompt, system=self.system) if is_bare and self.system is not None else prompt

    def params(self, task_settings: Mapping[str, Any]) -> SamplingParams:
        """Return the sampling parameters before a prompt's length is known."""
        asked = {name: value for name, value in self.settings.items() if value is not None}
        if self.way == "autoregressive":
            return SamplingParams(**{**AUTOREGRESSIVE_DEFAULTS, **asked})
        if self.profile == TASK_SETTINGS:
            return self.engine.sampling("paper", **{**task_settings, **asked})
        return self.engine.sampling(None if self.profile == ADAPTER_SETTINGS else self.profile, **asked)

    def fills_window(self, task: Task) -> bool:
        """Whether an answer gets what the paper's window leaves behind its question: neither task nor caller nor profile says how long."""
        is_by_task = self.way == "autoregressive" or self.profile == TASK_SETTINGS
        return task.length is None and is_by_task and "max_new_tokens" not in self.settings

    def recorded(self, params: SamplingParams) -> dict[str, Any]:
        """Return the settings that go beside a number: those that are read under this way of decoding."""
        values = dataclasses.asdict(params)
        if self.way == "autoregressive":
            values = {name: value for name, value in values.items() if name in (*READ_AUTOREGRESSIVELY, "profile")}
        if self._draws(params):
            values["seed"] = f"{params.seed}, with each example's id"
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def seeded(self, params: SamplingParams, example: Example) -> SamplingParams:
        """Give an example a seed of its own: with one for all, each would meet the same draws, which no interval over examples shows."""
        digest = hashlib.sha256(f"{params.seed}:{example.id}".encode()).digest()
        return params.replace(seed=int.from_bytes(digest[:4], "big"))

    def _draws(self, params: SamplingParams) -> bool:
        """Whether answers depend on the seed."""
        if params.temperature > 0 and params.top_k != 1:
            return True
        return self.way == "diffusion" and (self.engine.family != "lad" or params.remasking in RENOISING)


def identity(engine: Engine) -> dict[str, Any]:
    """Return what a result depends on besides its settings: weights, adapter, dtype, device and ops."""
    facts, adapter, config = engine.facts, engine.adapter_facts, engine.config
    return {
        "model": facts.name,
        "model_fingerprint": facts.fingerprint,
        "adapter": adapter.name if adapter else None,
        "adapter_sha256": None if engine.adapter_path is None else _digest(engine.adapter_path),
        "dtype": config.dtype,
        "precision": config.precision,
        "device": config.device,
        "batch_invariant": bool(config.batch_invariant),
        "ops": dict(engine.ops.chosen),
    }


def answer_task(condition: Condition, task: Task, examples: Sequence[Example]) -> list[Row]:
    """Decode a batch of a task's examples and score the answers; one row each."""
    prompts, params = [], []
    base = condition.params(task.settings)
    for example in examples:
        prompt, length = _request(condition, task, example, base)
        prompts.append(prompt)
        own = condition.seeded(base, example)
        params.append(own.replace(max_new_tokens=length) if prompt.infill is None else own)
    rows = []
    for example, prompt, result in zip(examples, prompts, decode(condition, prompts, params), strict=True):
        row = {**facts_of(result), "text": result.text}
        if prompt.infill is not None:
            # The words around the gap were given, not made.
            row["text"], row["tokens"] = _gap(condition.engine, prompt, result)
        rows.append({**row, **task.scored(example, row["text"])})
    return rows


def decode(condition: Condition, prompts: Sequence[Prompt], params: Sequence[SamplingParams]) -> list[GenerationResult]:
    """Answer prompts the way the condition says."""
    engine = condition.engine
    return engine.generate_autoregressive(prompts, params) if condition.way == "autoregressive" else engine.generate(prompts, params)


def facts_of(result: GenerationResult) -> Row:
    """Return what is kept of a decode besides its text; settled_at is the step after which no answer token changed again."""
    return {
        "nfe": result.nfe,
        "tokens": round(result.tpf * result.nfe),
        "steps": result.steps,
        "settled_at": 1 + max((last for _, last in result.step_map), default=-1),
        "stopped_early": result.stopped_early,
        "finish_reason": result.finish_reason,
    }


def _request(condition: Condition, task: Task, example: Example, base: SamplingParams) -> tuple[Prompt, int]:
    """Return a task's prompt for this condition and how many positions its answer gets."""
    engine = condition.engine
    is_causal = condition.way == "autoregressive"
    prompt = condition.asked((task.prompt_causal or task.prompt)(example) if is_causal else task.prompt(example))
    if task.length is not None:
        length = len(engine.codec.encode_continuation(task.length(example)))
        if prompt.infill is not None:
            prompt = dataclasses.replace(prompt, infill=prompt.infill.replace("[[GAP]]", f"[[{length}]]"))
        return prompt, length
    if not condition.fills_window(task):
        return prompt, base.max_new_tokens
    front = len(prompt_ids(prompt, engine.codec, engine.adapter_facts or prompt_defaults(engine.facts, engine.codec)))
    if front >= WINDOW:
        # The paper's window has no room left; an answer still gets a few positions.
        return prompt, 16
    return prompt, WINDOW - front


def _gap(engine: Engine, prompt: Prompt, result: GenerationResult) -> tuple[str, int]:
    """Return what was written into an infill's one gap, and its number of positions."""
    before, _, rest = (prompt.infill or "").partition("[[")
    size = int(rest.partition("]]")[0])
    start = len(engine.codec.encode(before))
    return engine.codec.decode(result.token_ids[start : start + size]).strip(), size


def _digest(path: Path) -> str:
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    if not files:
        raise ConfigError(f"adapter: {path} holds no safetensors file, expected one. Give the adapter as a file or a PEFT folder.")
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()
