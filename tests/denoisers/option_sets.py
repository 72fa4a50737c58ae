"""One set of sampling parameters per thing the decoder can do; several tests run over all of them."""

from __future__ import annotations

from lad_engine.config import SamplingParams

GREEDY = {"temperature": 0.0, "top_k": 1}
SAMPLED = {"temperature": 1.2, "top_k": 6}
LATE_EOS = {"eos_treatment": "low_confidence", "eos_bias": -3.0}

OPTION_SETS = {
    "greedy": {"remasking": "random", "noise_start": 0.8, **GREEDY},
    "noise_free": {"remasking": "none", **GREEDY},
    "noise_free_sampled": {"remasking": "none", **SAMPLED},
    "random": {"remasking": "random", "noise_start": 0.9, **SAMPLED},
    "random_linear": {"remasking": "random", "noise_schedule": "linear", **SAMPLED},
    "random_permanent": {"remasking": "random", "permanent_unmask": True, **SAMPLED},
    "random_split": {"remasking": "random", "eos_split": True, **SAMPLED},
    "clusters": {"remasking": "clusters", "cluster_size": 0.0, "top_p_rule": "drop_crossing", "top_p": 0.9, **SAMPLED},
    "clusters_wide": {"remasking": "clusters", "cluster_size": 0.7, **SAMPLED},
    "clusters_permanent": {"remasking": "clusters", "cluster_size": 0.5, "permanent_unmask": True, **SAMPLED},
    "bernoulli": {"remasking": "bernoulli", "noise_schedule": "linear", **SAMPLED},
    "bernoulli_delayed_eos": {"remasking": "bernoulli", **LATE_EOS, **SAMPLED},
    "confidence": {"remasking": "confidence", **SAMPLED},
    "confidence_greedy": {"remasking": "confidence", "noise_schedule": "linear", **GREEDY},
    "confidence_split": {"remasking": "confidence", "eos_split": True, "eos_bias": -2.0, **SAMPLED},
    "confidence_delayed_eos": {"remasking": "confidence", "eos_treatment": "low_confidence", "eos_bias": -2.0, **SAMPLED},
    "weighted": {"remasking": "weighted", "confidence": "kept", **SAMPLED},
    "weighted_split": {"remasking": "weighted", "eos_split": True, "noise_clip": 0.2, "eos_bias": -3.0, **SAMPLED},
    "weighted_permanent": {"remasking": "weighted", "eos_split": True, "permanent_unmask": True, "noise_clip": 0.0, **SAMPLED},
    "retain_editable": {"remasking": "confidence", "retention": "editable", "noise_schedule": "linear", **SAMPLED},
    "retain_locked": {"remasking": "confidence", "retention": "locked", "noise_schedule": "linear", **SAMPLED},
    "retain_random": {"remasking": "random", "retention": "locked", "selection": "random", **SAMPLED},
    "retain_split": {"remasking": "confidence", "retention": "editable", "eos_split": True, "eos_bias": -3.0, **SAMPLED},
    "retain_split_locked": {"remasking": "confidence", "retention": "locked", "eos_split": True, "eos_bias": -2.5, **GREEDY},
    "retain_delayed_eos": {"remasking": "random", "retention": "locked", "selection": "random", **LATE_EOS, **SAMPLED},
    "window": {"remasking": "random", "tokens_per_step": 4, **SAMPLED},
    "window_weighted": {"remasking": "weighted", "tokens_per_step": 3, "eos_split": True, **SAMPLED},
    "window_retained": {"remasking": "confidence", "retention": "locked", "tokens_per_step": 3, "noise_schedule": "linear", **GREEDY},
    "llada": {"remasking": "transfer", **GREEDY},
    "llada_blocks": {"remasking": "transfer", "block_length": 4, **GREEDY},
    "llada_threshold": {"remasking": "transfer", "block_length": 5, "threshold": 0.2, **GREEDY},
    "llada_threshold_eos": {"remasking": "transfer", "block_length": 4, "threshold": 0.1, **LATE_EOS, **SAMPLED},
    "llada_penalised": {"remasking": "transfer", "block_length": 3, "frequency_penalty": 0.8, "presence_penalty": 0.5, **GREEDY},
    "llada_random": {"remasking": "transfer", "selection": "random", "block_length": 5, **SAMPLED},
    "llada_delayed_eos": {"remasking": "transfer", "eos_treatment": "low_confidence", "eos_bias": -3.0, **SAMPLED},
    "llada_forbid_eos": {"remasking": "transfer", "eos_treatment": "forbid", **GREEDY},
    "llada_guided": {"remasking": "transfer", "cfg_scale": 1.5, **GREEDY},
    "guided": {"remasking": "random", "cfg_scale": 0.5, **SAMPLED},
    "unfiltered": {"remasking": "random", "temperature": 1.0, "top_k": 0},
    "nucleus": {"remasking": "random", "temperature": 1.0, "top_k": 0, "top_p": 0.7, "confidence": "kept"},
    "suppressed": {"remasking": "random", "suppress_tokens": (1, 2, 8, 11), "eos_bias": 2.0, **SAMPLED},
    "never_stops": {"remasking": "none", "early_stop": False, **GREEDY},
}


def params_of(name: str, **changes) -> SamplingParams:
    return SamplingParams(**{"max_new_tokens": 12, "steps": 9, "seed": 1234567890123, **OPTION_SETS[name], **changes})
