"""Drop-ins under the LAD authors' names: `generate_answer`, `denoise`, `denoise_stream`, each taking an Engine where theirs took a model.

Two dialects are understood; one call speaks one of them, and a name of neither is an error.

Current (their generic rewrite; linear schedule):
    max_new_tokens, num_steps (also num_inference_steps), noise_level, temperature (0 is greedy), top_k (0 becomes 1, as there), seed.
    permanent_unmask: retain round((1 - p) A) positions each step; freeze_retained_tokens: locked, else editable;
    proportional_unmask: share them between text and padding. Without it every position may be re-masked:
    confidence_guided: the least confident, else each by itself with probability p; with permanent_unmask it chooses what is retained.
    early_stopping: stop when settled (three identical states here, two in some of their releases).
    confidence_eos_eot_inf: end tokens are retained last. repetition_penalty, eos_eot_prediction_penalty, block_length: only their neutral
    values 1, 1 and None are accepted, the engine has no such rule.
Space (their web demo, and `generate_answer` of lad-code; exponential schedule):
    max_it (also num_steps), noise_start, sharpness (also noising_sharpness), temperature, top_k, top_p, seed, early_stopping.
    eos_bias: with the sign of the demo's slider, positive for longer answers; eos_boost: the number added to the end token's logit.
    context_window (also max_length): prompt and answer together; max_new_tokens: the answer alone. added_tokens (also add_tokens):
    positions that appear each iteration, at least the answer's length for all at once.
    use_confidence_noising (also confidence_guided): weighted by max(1 - confidence, noise_clipping); use_permanent_unmasking (also
    permanent_unmask): a shown position is not masked again; clustering: masks stick together. pause_length is ignored.
Positional arguments of `denoise` and `denoise_stream` behind the system prompt have the authors' order, see POSITIONAL.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from html import escape
from typing import TYPE_CHECKING, Any

from .config import SamplingParams
from .contracts import GenerationResult, StepEvent
from .errors import ConfigError, RequestError
from .text.formats import PromptDefaults, prompt_ids
from .text.prompts import Prompt

if TYPE_CHECKING:
    from .engine import Engine

SPACE_WINDOW = 256
CURRENT_DEFAULTS: Mapping[str, Any] = {
    "max_new_tokens": 64,
    "num_steps": 16,
    "noise_level": 1.0,
    "temperature": 1.0,
    "top_k": 1,
    "seed": 0,
    "permanent_unmask": False,
    "confidence_guided": False,
    "proportional_unmask": True,
    "early_stopping": False,
    "confidence_eos_eot_inf": False,
    "freeze_retained_tokens": True,
    "repetition_penalty": 1.0,
    "eos_eot_prediction_penalty": 1.0,
    "block_length": None,
}
SPACE_DEFAULTS: Mapping[str, Any] = {
    "max_it": 64,
    "noise_start": 0.5,
    "sharpness": 1.0,
    "temperature": 1.0,
    "top_k": 3,
    "top_p": 1.0,
    "seed": 0,
    "eos_bias": 0.0,
    "context_window": SPACE_WINDOW,
    "max_new_tokens": None,
    "added_tokens": SPACE_WINDOW,
    "use_confidence_noising": False,
    "use_permanent_unmasking": False,
    "noise_clipping": 0.01,
    "clustering": 0.0,
    "pause_length": 0.0,
    "early_stopping": True,
}
CURRENT_ALIASES: Mapping[str, str] = {"num_inference_steps": "num_steps"}
SPACE_ALIASES: Mapping[str, str] = {
    "num_steps": "max_it",
    "noising_sharpness": "sharpness",
    "max_length": "context_window",
    "add_tokens": "added_tokens",
    "confidence_guided": "use_confidence_noising",
    "permanent_unmask": "use_permanent_unmasking",
}
POSITIONAL = (
    "max_new_tokens",
    "num_steps",
    "noise_level",
    "temperature",
    "top_k",
    "seed",
    "permanent_unmask",
    "confidence_guided",
    "proportional_unmask",
    "early_stopping",
)
# A call that uses one of these speaks the Space's dialect.
SPACE_ONLY = ({*SPACE_DEFAULTS, *SPACE_ALIASES, "eos_boost"} - {*CURRENT_DEFAULTS, *CURRENT_ALIASES}) | {"noise_start"}


def generate_answer(question: str, engine: Engine, tokenizer: Any = None, **settings: Any) -> str:
    """Return the answer to `question`, with the defaults of lad-code's function of this name; `tokenizer` is the engine's own.

    Accepts the Space dialect of the module's text; `eos_token_id` may repeat the engine's end token.
    """
    end_id = settings.pop("eos_token_id", None)
    if end_id is not None and end_id not in engine.eos_ids:
        raise ConfigError(f"eos_token_id is {end_id}, expected one of {', '.join(map(str, engine.eos_ids))}. It is a fact of the adapter.")
    given = {"max_it": 16, "sharpness": 5.0, "top_k": 100} | _canonical(settings, SPACE_ALIASES, [*SPACE_DEFAULTS, "eos_boost"])
    prompt = Prompt(question)
    (result,) = engine.generate([prompt], _space_params(given, lambda: _prompt_length(engine, prompt)))
    return result.text.strip()


def denoise(
    session: Engine,
    question: str,
    system_prompt: str | None = None,
    *positional: Any,
    progress: Callable[[float, str], None] | None = None,
    **settings: Any,
) -> tuple[str, str]:
    """Return (text, status) after the last step; `progress(share, status)` is called after every one. Settings: see the module."""
    last = ("", "")
    for text, status, _, share in _states(session, question, system_prompt, _named(positional, settings), wants_html=False):
        last = (text, status)
        if progress is not None:
            progress(share, status)
    return last


def denoise_stream(
    session: Engine, question: str, system_prompt: str | None = None, *positional: Any, **settings: Any
) -> Iterator[tuple[str, str, str]]:
    """Yield (text, status, html) after every step; the last text is the final answer. Settings: see the module."""
    for text, status, html, _ in _states(session, question, system_prompt, _named(positional, settings), wants_html=True):
        yield text, status, html


def authors_params(settings: Mapping[str, Any], prompt_length: Callable[[], int] = lambda: 0) -> SamplingParams:
    """Translate the authors' names to SamplingParams.

    Args:
        prompt_length: called where a context window has to be split into prompt and answer.
    Raises:
        ConfigError: a name of neither dialect, the same thing said twice, or a rule the engine does not have.
    """
    if any(name in SPACE_ONLY for name in settings):
        return _space_params(_canonical(settings, SPACE_ALIASES, [*SPACE_DEFAULTS, "eos_boost"]), prompt_length)
    return _current_params(_canonical(settings, CURRENT_ALIASES, CURRENT_DEFAULTS))


def _current_params(given: dict[str, Any]) -> SamplingParams:
    asked = {**CURRENT_DEFAULTS, **given}
    for name in ("repetition_penalty", "eos_eot_prediction_penalty", "block_length"):
        neutral = CURRENT_DEFAULTS[name]
        if asked[name] != neutral:
            raise ConfigError(f"{name} is {asked[name]!r}, expected {neutral!r}: the engine has no such rule. Leave it out.")
    if asked["permanent_unmask"]:
        rule = {
            "remasking": "random",
            "retention": "locked" if asked["freeze_retained_tokens"] else "editable",
            "selection": "confidence" if asked["confidence_guided"] else "random",
            "eos_split": bool(asked["proportional_unmask"]),
        }
    else:
        rule = {"remasking": "confidence" if asked["confidence_guided"] else "bernoulli"}
    return SamplingParams(
        max_new_tokens=asked["max_new_tokens"],
        steps=asked["num_steps"],
        noise_schedule="linear",
        noise_start=asked["noise_level"],
        temperature=asked["temperature"],
        top_k=max(asked["top_k"], 1),
        confidence="kept",
        eos_treatment="low_confidence" if asked["confidence_eos_eot_inf"] else "none",
        early_stop=asked["early_stopping"],
        seed=asked["seed"],
        **rule,
    )


def _space_params(given: dict[str, Any], prompt_length: Callable[[], int]) -> SamplingParams:
    if "eos_boost" in given and "eos_bias" in given:
        raise ConfigError("eos_bias and eos_boost are both given, expected one of them (eos_boost is its negative).")
    asked = {**SPACE_DEFAULTS, **given}
    answer = asked["max_new_tokens"]
    if answer is None:
        length = prompt_length()
        answer = asked["context_window"] - length
        if answer < 1:
            raise RequestError(f"context_window is {asked['context_window']}, expected more than the {length} prompt tokens. Raise it.")
    if asked["use_confidence_noising"]:
        remasking = "weighted"
    else:
        # The demo draws with replacement unless positions are protected.
        remasking = "random" if asked["use_permanent_unmasking"] else "clusters"
    return SamplingParams(
        max_new_tokens=answer,
        steps=asked["max_it"],
        tokens_per_step=asked["added_tokens"] if asked["added_tokens"] < answer else None,
        temperature=asked["temperature"],
        top_k=asked["top_k"],
        top_p=asked["top_p"],
        top_p_rule="drop_crossing",
        confidence="kept",
        # Their slider's positive side lengthens answers, as ours; the boost is what is added to the logit.
        eos_bias=-given["eos_boost"] if "eos_boost" in given else asked["eos_bias"],
        noise_schedule="exponential",
        noise_start=asked["noise_start"],
        noise_sharpness=asked["sharpness"],
        # As in the demo, only one policy reads each of these two.
        **({"noise_clip": asked["noise_clipping"]} if remasking == "weighted" else {}),
        **({"cluster_size": asked["clustering"]} if remasking == "clusters" else {}),
        remasking=remasking,
        permanent_unmask=bool(asked["use_permanent_unmasking"]),
        eos_split=remasking == "weighted",
        early_stop=asked["early_stopping"],
        seed=asked["seed"],
    )


def _named(positional: tuple[Any, ...], settings: dict[str, Any]) -> dict[str, Any]:
    if len(positional) > len(POSITIONAL):
        raise ConfigError(f"{len(positional) + 3} positional arguments are given, expected at most {len(POSITIONAL) + 3}. Name the others.")
    named = dict(zip(POSITIONAL, positional, strict=False))
    for name in named.keys() & settings.keys():
        raise ConfigError(f"{name} is given twice; give it once.")
    return named | settings


def _canonical(settings: Mapping[str, Any], aliases: Mapping[str, str], known: Mapping[str, Any] | list[str]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in settings.items():
        canonical = aliases.get(name, name)
        if canonical not in known:
            close = difflib.get_close_matches(name, {*CURRENT_DEFAULTS, *CURRENT_ALIASES, *SPACE_DEFAULTS, *SPACE_ALIASES}, n=2)
            if name in {*CURRENT_DEFAULTS, *SPACE_DEFAULTS, *CURRENT_ALIASES, *SPACE_ALIASES}:
                raise ConfigError(f"{name} belongs to the other dialect of the authors' names, expected {', '.join(sorted(known))}.")
            hint = f"Did you mean {' or '.join(close)}?" if close else f"Accepted are {', '.join(sorted(known))}."
            raise ConfigError(f"{name} is not a name of the authors' samplers. {hint}")
        if canonical in out:
            raise ConfigError(f"{canonical} is given twice (also as {name}); give it once.")
        out[canonical] = value
    return out


def _states(
    engine: Engine, question: str, system_prompt: str | None, settings: Mapping[str, Any], wants_html: bool
) -> Iterator[tuple[str, str, str, float]]:
    """Yield (text, status, html, share of the steps done) after every step."""
    prompt = Prompt(question, system=system_prompt)
    params = authors_params(settings, lambda: _prompt_length(engine, prompt))
    last: StepEvent | None = None
    for item in engine.stream([prompt], params):
        if isinstance(item, StepEvent):
            if last is not None:
                yield _state(engine, last, last.text, wants_html)
            last = item
        elif isinstance(item, GenerationResult) and last is not None:
            # The last state is shown with the answer as it was finally cut.
            yield _state(engine, last, item.text.strip(), wants_html)


def _state(engine: Engine, event: StepEvent, text: str, wants_html: bool) -> tuple[str, str, str, float]:
    end = next((i for i, token in enumerate(event.token_ids) if token in engine.eos_ids), len(event.token_ids))
    mean = sum(event.confidences) / max(len(event.confidences), 1)
    status = f"Denoising step {event.step + 1}/{event.steps} \u00b7 {end} output tokens \u00b7 mean confidence {mean:.3f}"
    html = _html(engine, event, end) if wants_html else ""
    return text, status, html, 1.0 if event.is_last else (event.step + 1) / event.steps


def _html(engine: Engine, event: StepEvent, end: int) -> str:
    """Return the canvas as HTML: masks as grey chips, tokens from red to green by confidence."""
    pieces = []
    for token, confidence in zip(event.token_ids[:end], event.confidences, strict=False):
        if token == engine.mask_id:
            pieces.append('<span class="mask" style="background:#ccc;border-radius:3px">&nbsp;mask&nbsp;</span>')
        else:
            hue = round(120 * min(max(confidence, 0.0), 1.0))
            pieces.append(f'<span style="color:hsl({hue},90%,30%)" title="{confidence:.2f}">{escape(engine.codec.piece(token))}</span>')
    return f'<div style="white-space:pre-wrap">{"".join(pieces)}</div>'


def _prompt_length(engine: Engine, prompt: Prompt) -> int:
    return len(prompt_ids(prompt, engine.codec, engine.adapter_facts or PromptDefaults()))
