"""TESS 2's checkpoint layout: recognised by its time vector, its fields read, what nothing released uses refused by name."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_simplex import make_tess

from lad_engine.errors import CheckpointError
from lad_engine.model.language_model import LanguageModel
from lad_engine.model.simplex_model import SimplexModel
from lad_engine.model.transformer import Transformer
from lad_engine.model.weights import open_checkpoint
from lad_engine.ops import select_ops


def test_the_published_layout_is_a_shifted_simplex_model(tmp_path):
    checkpoint = open_checkpoint(make_tess(tmp_path, pad_token_id=7))
    facts = checkpoint.facts
    assert (facts.decoding, facts.family, facts.mask_id, facts.predicts_next_token) == ("simplex", "mistral", 7, True)
    assert facts.extra == {"has_time_embedding": True, "self_condition": True, "simplex_value": 5.0}
    model = Transformer.from_tensors(facts, checkpoint.tensors(), select_ops("reference"))
    stored = dict(checkpoint.tensors())["timestep_embed.weight"]
    assert stored.shape == (64, 1) and torch.equal(model.time_embed, stored[:, 0])
    assert SimplexModel(LanguageModel(model)).value == 5.0


def test_the_name_of_the_folder_says_nothing(tmp_path):
    assert open_checkpoint(make_tess(tmp_path / "llada-dream-causal")).facts.decoding == "simplex"


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("self_condition", "addition", "self_condition is 'addition', expected 'logits_mean' or null"),
        ("self_condition_mix_before_weights", False, "self_condition_mix_before_weights is False, expected True"),
        ("is_causal", True, "is_causal is True, expected False"),
        ("simplex_value", -1, "simplex_value is -1, expected a number above 0"),
        ("simplex_value", float("inf"), "simplex_value is inf, expected a number above 0 and below 10000"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(tmp_path, field, value, message):
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(make_tess(tmp_path, **{field: value}))


def test_another_value_and_no_self_conditioning_are_read(tmp_path):
    facts = open_checkpoint(make_tess(tmp_path, simplex_value=3, self_condition=None)).facts
    assert facts.mask_id == 0
    make_tess(tmp_path, simplex_value=3)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, "self_condition": None}))
    assert open_checkpoint(tmp_path).facts.extra == {"has_time_embedding": True, "self_condition": False, "simplex_value": 3.0}


def test_a_base_without_a_time_vector_gets_zeros_where_one_is_asked_for(tmp_path):
    from_tess = open_checkpoint(make_tess(tmp_path))
    tensors = {name: value for name, value in from_tess.tensors() if name != "timestep_embed.weight"}
    import dataclasses

    facts = dataclasses.replace(from_tess.facts, extra={})
    model = Transformer.from_tensors(facts, tensors.items(), select_ops("reference"))
    assert model.time_embed is None
    assert torch.equal(model.norm("timestep_embed"), torch.zeros(64)) and model.time_embed is model.norm("timestep_embed")
