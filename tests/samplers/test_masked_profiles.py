"""The profiles of masked diffusion hold the published defaults, and every one fits the family."""

from __future__ import annotations

import pytest

from lad_engine.contracts import ModelFacts, RopeFacts
from lad_engine.families import DECODINGS, READS, check_params, decoding_of, default_profile
from lad_engine.profiles import profile_names, profile_params

FACTS = {"width": 8, "mlp_width": 8, "layers": 1, "query_heads": 1, "kv_heads": 1, "head_width": 8, "vocab_size": 9, "max_positions": 9}


def facts(family, decoding):
    rest = {"norm_eps": 1e-5, "rope": RopeFacts(), "has_qkv_bias": False, "has_tied_head": False, "bos_id": None, "eos_ids": ()}
    return ModelFacts(family=family, decoding=decoding, **FACTS, **rest)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("diffullama", {"steps": 64, "temperature": 0.9, "top_p": 0.9, "top_p_rule": "keep_crossing", "top_k": 0, "reveal": "random"}),
        ("diffugpt", {"steps": 64, "temperature": 0.95, "top_p": 0.9, "top_p_rule": "keep_crossing", "top_k": 0, "reveal": "random"}),
        ("diffullama_confidence", {"steps": 64, "temperature": 1.0, "top_k": 1, "confidence": "full", "reveal": "confidence"}),
        ("dream", {"reveal": "entropy", "temperature": 0.2, "top_p": 0.95, "reveal_temperature": 0.0, "time_floor": 1e-3}),
        ("llada_masked", {"reveal": "transfer", "temperature": 0.0, "block_length": 32, "selection": "confidence", "threshold": None}),
        ("fast_dllm", {"reveal": "transfer", "threshold": 0.9, "factor": None, "block_length": 32}),
    ],
)
def test_profiles_hold_the_published_numbers(name, wanted):
    params = profile_params(name, {})
    assert {field: getattr(params, field) for field in wanted} == wanted
    check_params("masked", params)


def test_a_checkpoint_without_a_word_from_anybody_gets_its_backbones_profile():
    known = profile_names()
    for family, profile in {"gpt2": "diffugpt", "llama": "diffullama", "llada": "llada_masked", "Dream": "dream"}.items():
        assert default_profile(facts(family, "masked")) == profile in known
    assert default_profile(facts("gpt2", "lad")) == "paper"


def test_the_family_follows_from_fields_tensors_and_tokenizer_alone():
    assert decoding_of({"model_type": "llama"}) == "lad"
    assert decoding_of({"model_type": "llama", "_name_or_path": "diffullama"}) == "lad"
    assert decoding_of({"model_type": "llama"}, has_mask_token=True) == "masked"
    assert decoding_of({"model_type": "gpt2"}, ["denoise_model.wpe.weight"]) == "masked"
    assert decoding_of({"model_type": "llada"}) == decoding_of({"model_type": "Dream"}) == "masked"
    assert decoding_of({"model_type": "mistral"}, ["timestep_embed.weight"]) == "simplex"
    assert decoding_of({"model_type": "llama", "decoding": "masked"}, ["timestep_embed.weight"]) == "masked"


def test_every_family_reads_known_settings():
    names = {field for fields in READS.values() for field in fields}
    assert set(READS) == set(DECODINGS)
    assert names <= set(vars(profile_params("paper", {})))
