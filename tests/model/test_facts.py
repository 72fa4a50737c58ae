"""config.json becomes ModelFacts, in the old and the new form; what we would compute wrongly is refused in one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lad_engine.contracts import ModelFacts, RopeFacts
from lad_engine.errors import CheckpointError
from lad_engine.model.facts import facts_from_config, read_facts
from tiny_checkpoint import FAMILIES, make_tiny, tiny_config


def facts(family: str = "llama", generation: dict | None = None, **changes: object) -> ModelFacts:
    return facts_from_config(tiny_config(family, **changes), generation or {}, where="config.json", name="tiny")


@pytest.mark.parametrize("family", FAMILIES)
def test_facts_agree_with_what_transformers_reads(tmp_path: Path, family: str) -> None:
    from transformers import AutoConfig

    folder = make_tiny(tmp_path / "tiny", family)
    ours, theirs = read_facts(folder), AutoConfig.from_pretrained(folder)
    assert (ours.family, ours.name) == (theirs.model_type, "tiny")
    assert (ours.width, ours.mlp_width, ours.layers) == (theirs.hidden_size, theirs.intermediate_size, theirs.num_hidden_layers)
    assert (ours.query_heads, ours.kv_heads) == (theirs.num_attention_heads, theirs.num_key_value_heads)
    assert ours.head_width == (getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads)
    assert (ours.rope.theta, ours.rope.kind) == (theirs.rope_parameters["rope_theta"], theirs.rope_parameters["rope_type"])
    assert (ours.norm_eps, ours.vocab_size, ours.has_tied_head) == (theirs.rms_norm_eps, theirs.vocab_size, theirs.tie_word_embeddings)
    assert ours.has_qkv_bias == (family == "qwen2")


LLAMA3 = {
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize(
    "changes,expected",
    [
        ({"rope_theta": None}, RopeFacts(10000.0)),
        ({"rope_theta": 5e5, "rope_scaling": None}, RopeFacts(5e5)),
        ({"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2.0}}, RopeFacts(1e4, "linear", 2.0)),
        ({"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}}, RopeFacts(5e5, "llama3", 32.0, 1.0, 4.0, 8192)),
        ({"rope_theta": None, "rope_parameters": {"rope_theta": 1e5, "rope_type": "default"}}, RopeFacts(1e5)),
        (
            {"rope_theta": None, "rope_parameters": {"rope_theta": 5e5, "rope_type": "llama3", **LLAMA3}},
            RopeFacts(5e5, "llama3", 32.0, 1.0, 4.0, 8192),
        ),
    ],
)
def test_rope_is_read_in_both_forms(changes: dict, expected: RopeFacts) -> None:
    assert facts(**changes).rope == expected


def test_absent_fields_follow_the_family() -> None:
    assert facts(num_key_value_heads=None).kv_heads == 4
    assert facts("mistral", head_dim=None).head_width == 16
    assert facts(tie_word_embeddings=None).has_tied_head is False


def test_end_tokens_come_from_both_files_without_repeats() -> None:
    assert facts(eos_token_id=7, generation={"eos_token_id": [9, 7]}).eos_ids == (7, 9)
    assert facts(eos_token_id=[3, 4], generation={"eos_token_id": 3}).eos_ids == (3, 4)
    nothing = facts(eos_token_id=None, bos_token_id=None)
    assert (nothing.eos_ids, nothing.bos_id) == ((), None)


def test_a_sliding_window_bounds_the_canvas_only_where_it_is_used() -> None:
    assert facts("mistral", sliding_window=128).max_positions == 128
    assert facts("mistral", sliding_window=None).max_positions == 512
    assert facts("qwen2", use_sliding_window=False, sliding_window=128).max_positions == 512
    assert facts("qwen2", use_sliding_window=True, sliding_window=128).max_positions == 128


@pytest.mark.parametrize(
    "changes,sentence",
    [
        ({"model_type": "gpt_neox"}, "model_type is 'gpt_neox', expected one of llama, mistral, qwen2, gpt2"),
        ({"model_type": None}, "model_type is None, expected one of"),
        ({"model_type": ["llama"]}, r"model_type is \['llama'\], expected one of"),
        ({"quantization_config": "gptq"}, r"weights are quantised \(gptq\)"),
        ({"max_position_embeddings": 10**12}, "max_position_embeddings is 1000000000000, expected a positive integer"),
        ({"rope_theta": 10**400}, "rope_theta is 10+, expected a number above 0"),
        ({"eos_token_id": 10**30}, "eos_token_id is 10+, expected a token id"),
        ({"hidden_size": None}, "hidden_size is missing, expected a positive integer"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0, expected a positive integer"),
        ({"vocab_size": "many"}, "vocab_size is 'many', expected a positive integer"),
        ({"num_key_value_heads": 3}, r"num_key_value_heads is 3, expected a divisor of num_attention_heads \(4\)"),
        ({"head_dim": 15}, "head_dim is 15, expected an even number"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps is 'small', expected a number above 0"),
        ({"attention_bias": True}, "attention_bias is true, expected false"),
        ({"mlp_bias": True}, "mlp_bias is true, expected false"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', expected silu or swish"),
        ({"quantization_config": {"quant_method": "gptq"}}, r"weights are quantised \(gptq\)"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_type is 'yarn', expected one of default, linear, llama3"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor is missing, expected a number above 0"),
        ({"rope_scaling": {"rope_type": "llama3", **LLAMA3, "low_freq_factor": 4.0}}, "low_freq_factor is 4, expected less than"),
        ({"rope_scaling": "yarn"}, "rope parameters are 'yarn', expected a JSON object"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5, expected 1"),
        ({"eos_token_id": "</s>"}, "eos_token_id is '</s>', expected a token id or a list"),
    ],
)
def test_a_wrong_config_is_refused_naming_the_field(changes: dict, sentence: str) -> None:
    with pytest.raises(CheckpointError, match=f"^config.json: {sentence}"):
        facts(**changes)


def test_a_folder_without_a_readable_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json is missing, expected a Hugging Face model folder"):
        read_facts(tmp_path)
    for text, sentence in (
        ("{", "is not valid JSON"),
        ("[]", "holds a list, expected a JSON object"),
        ("\x80", "is not valid JSON"),
        ("[" * 100_000, "is not valid"),
    ):
        (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(CheckpointError, match=rf"config\.json: {sentence}"):
            read_facts(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(tiny_config("llama")))
    (tmp_path / "generation_config.json").write_text("oops")
    with pytest.raises(CheckpointError, match=r"generation_config\.json: is not valid JSON"):
        read_facts(tmp_path)
