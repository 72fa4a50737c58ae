"""Which modules an adapter names, and the sizes of the released ones."""

from __future__ import annotations

import pytest

from lad_engine.adapters.targets import count_parameters, is_target, linear_shapes, pattern_value, short_names
from lad_engine.contracts import ModelFacts, RopeFacts


def llama(width: int, layers: int, heads: int, mlp: int) -> ModelFacts:
    rope = RopeFacts(theta=500000.0, kind="llama3", factor=8.0)
    return ModelFacts(
        "llama", width, mlp, layers, heads, 8, width // heads, 128256, 131072, 1e-5, rope, False, width < 4096, 128000, (128009,)
    )


LLAMA_1B, LLAMA_3B, LLAMA_8B = llama(2048, 16, 32, 8192), llama(3072, 28, 24, 8192), llama(4096, 32, 32, 14336)


@pytest.mark.parametrize(
    ("facts", "rank", "millions"),
    # table 1 of the LAD paper; L r (2h + h + kv) on q and v
    [
        (LLAMA_1B, 128, 13.6),
        (LLAMA_1B, 512, 54.5),
        (LLAMA_3B, 512, 146.8),
        (LLAMA_3B, 1024, 293.6),
        (LLAMA_8B, 1024, 436.2),
        (LLAMA_8B, 2048, 872.4),
    ],
)
def test_parameter_counts_are_those_of_the_paper(facts: ModelFacts, rank: int, millions: float) -> None:
    count = count_parameters(facts, rank, ("q_proj", "v_proj"))
    kv = facts.kv_heads * facts.head_width
    assert count == facts.layers * rank * (2 * facts.width + facts.width + kv)
    assert round(count / 1e6, 1) == millions


def test_all_linear_leaves_the_head_out() -> None:
    per_layer = sum(sum(shape) for name, shape in linear_shapes(LLAMA_1B).items() if name.startswith("model.layers.0."))
    assert count_parameters(LLAMA_1B, 8, "all-linear") == 8 * 16 * per_layer
    assert count_parameters(LLAMA_1B, 8, ["lm_head"]) == 8 * (128256 + 2048)


@pytest.mark.parametrize(
    ("module", "targets", "options", "expected"),
    [
        ("model.layers.3.self_attn.q_proj", ("q_proj",), {}, True),
        ("model.layers.3.self_attn.q_proj", ("proj",), {}, False),
        ("model.layers.3.self_attn.q_proj", ("self_attn.q_proj",), {}, True),
        ("model.layers.3.self_attn.q_proj", ("model.layers.3.self_attn.q_proj",), {"layers": [1]}, True),
        ("model.layers.3.self_attn.q_proj", ("q_proj",), {"layers": [1, 3]}, True),
        ("model.layers.3.self_attn.q_proj", ("q_proj",), {"layers": 1}, False),
        ("model.layers.0.self_attn.q_proj", ("q_proj",), {"layers": 0}, True),
        ("model.layers.3.self_attn.q_proj", ("q_proj",), {"layers": [3], "layers_pattern": "layers"}, True),
        ("model.layers.3.self_attn.q_proj", ("q_proj",), {"layers": [3], "layers_pattern": ["blocks"]}, False),
        ("model.layers.3.self_attn.q_proj", r".*\.[0-3]\.self_attn\.[qv]_proj", {}, True),
        ("model.layers.4.self_attn.q_proj", r".*\.[0-3]\.self_attn\.[qv]_proj", {}, False),
        ("model.layers.4.self_attn.q_proj", r"q_proj", {}, False),
        ("model.layers.4.mlp.up_proj", "all-linear", {}, True),
        ("lm_head", "all-linear", {}, False),
        ("lm_head", ("lm_head",), {"layers": [0]}, True),
        ("model.layers.4.mlp.up_proj", ("up_proj",), {"exclude": ("up_proj",)}, False),
        ("model.layers.4.mlp.up_proj", ("up_proj",), {"exclude": r".*\.5\..*"}, True),
    ],
)
def test_targets_match_as_in_peft(module: str, targets: object, options: dict, expected: bool) -> None:
    assert is_target(module, targets, **options) is expected


def test_patterns_match_the_end_of_a_path_and_the_first_wins() -> None:
    patterns = {"layers.1.self_attn.q_proj": 8, "q_proj": 16}
    assert pattern_value(patterns, "model.layers.1.self_attn.q_proj", 4) == 8
    assert pattern_value(patterns, "model.layers.11.self_attn.q_proj", 4) == 16
    assert pattern_value(patterns, "model.layers.1.self_attn.v_proj", 4) == 4
    assert pattern_value(None, "lm_head", 4) == 4


def test_short_names_are_sorted_and_unique() -> None:
    assert short_names(["model.layers.0.self_attn.v_proj", "lm_head", "model.layers.1.self_attn.v_proj"]) == ("lm_head", "v_proj")
