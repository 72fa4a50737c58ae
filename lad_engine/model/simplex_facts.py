"""What TESS 2's config.json says beyond its backbone's; a way of self-conditioning that nothing released uses is refused."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from ..contracts import ModelFacts
from ..errors import CheckpointError
from ..families import TIME_EMBEDDING

# Fields of the reference's config and what they are in every released checkpoint.
ONLY = {
    "self_condition_mix_before_weights": True,
    "self_condition_mix_logits_before_weights": False,
    "self_condition_zeros_after_softmax": False,
    "self_condition_mlp_projection": False,
    "deepmind_conditional": False,
    "classifier_free_simplex_inputs": False,
    "is_causal": False,
}
LARGEST_VALUE = 1e4
# self_condition -> whether the previous prediction is averaged in
SELF_CONDITIONING = {"logits_mean": True, None: False}


def simplex_facts(facts: ModelFacts, config: Mapping[str, Any], names: Collection[str], where: str) -> ModelFacts:
    """Return the facts of a simplex checkpoint: its pad token, its time vector, and how it conditions on its own prediction.

    `extra`: has_time_embedding, self_condition (bool), simplex_value (k; 5 unless config.json says otherwise).
    Raises:
        CheckpointError: a field asks for what is not computed here, or names no number.
    """
    for field, wanted in ONLY.items():
        if config.get(field, wanted) != wanted:
            raise CheckpointError(
                f"{where}: {field} is {config[field]!r}, expected {wanted!r}, as in the released checkpoints. Choose another model."
            )
    mixing = config.get("self_condition", "logits_mean")
    if mixing not in SELF_CONDITIONING:
        raise CheckpointError(f"{where}: self_condition is {mixing!r}, expected 'logits_mean' or null. Choose another model.")
    value = config.get("simplex_value", 5)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < LARGEST_VALUE:
        raise CheckpointError(f"{where}: simplex_value is {value!r}, expected a number above 0 and below {LARGEST_VALUE:g}. Correct it.")
    has_time = TIME_EMBEDDING in names and not config.get("disable_timestep_embed", False)
    pad = config.get("pad_token_id")
    is_id = isinstance(pad, int) and not isinstance(pad, bool) and 0 <= pad < facts.vocab_size
    extra = {
        **facts.extra,
        "has_time_embedding": has_time,
        "self_condition": SELF_CONDITIONING[mixing],
        "simplex_value": float(value),
    }
    return replace(facts, mask_id=pad if is_id else facts.mask_id, extra=extra)
