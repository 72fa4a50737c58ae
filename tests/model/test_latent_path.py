"""L2D's flow path: published sizes, the reference's key layout, and its numbers against a plain transcription."""

from __future__ import annotations

import json
from dataclasses import replace

import bench_on_path  # noqa: F401
import pytest
import torch
from safetensors.torch import load_file

from bench.families.latent_loop import ReferenceLoop
from lad_engine.contracts import ModelFacts, RopeFacts
from lad_engine.errors import CheckpointError, ConfigError
from lad_engine.model.language_model import LanguageModel
from lad_engine.model.latent_facts import LatentFacts, latent_shapes
from lad_engine.model.latent_model import KEPT_GRIDS, LatentModel
from lad_engine.model.latent_path import LatentTransformer
from lad_engine.model.precision import quantise
from lad_engine.model.transformer import Transformer
from lad_engine.model.weights import open_checkpoint
from lad_engine.ops import select_ops
from tiny_checkpoint import make_tiny, save_sharded
from tiny_latent import FLOW_WIDTH, make_tiny_latent

# layers, D, F, H, G, K, V, parameters of the flow path (the paper's 73, 103, 281 and 233 M)
PUBLISHED = {
    "Llama-3.2-1B": (16, 2048, 8192, 32, 8, 64, 128256, 73_344_256),
    "Llama-3.1-8B": (32, 4096, 14336, 32, 8, 128, 128256, 281_036_032),
    "Qwen2.5-1.5B": (28, 1536, 8960, 12, 2, 128, 151936, 103_324_928),
    "Qwen2.5-7B": (28, 3584, 18944, 28, 4, 128, 152064, 233_008_384),
}


def load(folder, invariant: bool = True, ops: str = "auto") -> LatentModel:
    checkpoint = open_checkpoint(folder)
    transformer = LatentTransformer.from_tensors(checkpoint.facts, checkpoint.tensors(), select_ops(ops))
    return LatentModel(LanguageModel(transformer, invariant))


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_are_the_published_ones(name):
    layers, D, F, H, G, K, V, parameters = PUBLISHED[name]
    is_qwen = name.startswith("Qwen")
    facts = ModelFacts(
        family="qwen2" if is_qwen else "llama", width=D, mlp_width=F, layers=layers, query_heads=H, kv_heads=G, head_width=K, vocab_size=V,
        max_positions=16, norm_eps=1e-5, rope=RopeFacts(), has_qkv_bias=is_qwen, has_tied_head=True, bos_id=None, eos_ids=(2,),
        decoding="latent_ode", extra=LatentFacts().to_extra(),
    )  # fmt: skip
    model = LatentTransformer(facts, select_ops("reference"), torch.bfloat16, "meta")
    assert sum(one.numel() for one in model.flow.parameters()) == parameters
    assert sum(slot.numel() for slot in model.flow.slots().values()) == parameters
    base = sum(one.numel() for one in Transformer(facts, select_ops("reference"), torch.bfloat16, "meta").parameters())
    assert sum(one.numel() for one in model.parameters()) == base + parameters


@pytest.mark.parametrize("changes", [{}, {"classes": 3}, {"has_full_weights": True}, {"stores_copies": True}], ids=str)
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_checkpoint_in_the_references_layout_loads_by_its_tensor_names(tmp_path, family, changes):
    make_tiny_latent(tmp_path, family, **changes)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.facts.decoding == "latent_ode"
    assert LatentFacts.of(checkpoint.facts).classes == changes.get("classes", 0)
    stored = load_file(tmp_path / "model.safetensors")
    model = load(tmp_path).transformer
    for name, slot in model.flow.slots().items():
        assert torch.equal(slot, stored[name]), name
    assert set(latent_shapes(checkpoint.facts)) <= set(stored)


def test_without_a_flow_path_a_base_is_no_latent_model(tmp_path):
    make_tiny(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.facts.decoding == "lad"
    base = Transformer.from_tensors(checkpoint.facts, checkpoint.tensors(), select_ops("auto"))
    with pytest.raises(ConfigError, match="latent_ode: this llama base has no flow path"):
        LatentModel(LanguageModel(base))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("flow_representation_num_layers", 2),
        ("flow_representation_normalize", False),
        ("flow_representation_rescaling", "div"),
        ("modulate_hidden_states", True),
        ("noise_rescaling", "loud"),
        ("noise_rescaling", 0),
        ("noise_rescaling", float("inf")),
        ("flow_lora_alpha", -1),
    ],
)
def test_a_configuration_that_computes_something_else_is_refused_by_field(tmp_path, field, value):
    make_tiny_latent(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, field: value}))
    with pytest.raises(CheckpointError, match=rf"{field} is .*expected"):
        open_checkpoint(tmp_path)


def test_a_missing_tensor_of_the_flow_path_is_named(tmp_path):
    make_tiny_latent(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.modulation_head.mlp.2.bias"]
    save_sharded(tmp_path, tensors)
    with pytest.raises(CheckpointError, match=r"model.layers.1.modulation_head.mlp.2.bias is missing"):
        open_checkpoint(tmp_path)


def test_quantised_weights_are_refused(tmp_path):
    make_tiny_latent(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    transformer = LatentTransformer.from_tensors(checkpoint.facts, checkpoint.tensors(), select_ops("auto"))
    quantise(transformer, "int8_weights")
    with pytest.raises(ConfigError, match="precision: the weights are in 8 bits, expected auto"):
        LatentModel(LanguageModel(transformer))


def test_flow_vectors_have_one_length_and_the_table_is_computed_once(tmp_path):
    model = load(make_tiny_latent(tmp_path))
    table = model.table()
    assert table.shape == (320, FLOW_WIDTH) and model.table() is table
    assert torch.allclose(table.norm(dim=1), torch.full((320,), FLOW_WIDTH**0.5), atol=1e-4)
    times = (0.25, 1.0)
    assert model.grid(times) is model.grid((0.25, 1.0))
    assert model.grid(times).layers.shape == (2, 1, 2, 6, 64)
    # A request names its own end time: what is kept of all these does not grow with them.
    kept = model.grid(times)
    for n in range(20):
        model.grid((0.5, 1.0 - n / 100))
        assert model.grid(times) is kept
    assert len(model._grids) == KEPT_GRIDS


@pytest.mark.parametrize("classes", [0, 3])
def test_at_time_zero_the_output_is_the_base_models_bit_for_bit(tmp_path, classes):
    model = load(make_tiny_latent(tmp_path, classes=classes))
    cache = model.open_cache(1, 16)
    with torch.inference_mode():
        hidden = model.prefill(torch.tensor([[5, 9, 200, 33]]), (4,), cache)
        x = 64 * torch.randn(1, 1, FLOW_WIDTH)
        at = model.grid((0.0, 0.5))
        labels = torch.full((1, 1), min(classes, 1))
        for index, is_base in ((0, True), (1, False)):
            one = type(at)(*(part[index] for part in at))
            rows = model.flow(x, 1 / 64, one, labels, hidden, cache, cache.positions - 1)
            assert torch.equal(rows[:, 0], hidden) == is_base
        rows = model.flow(x, 1 / 64, torch.zeros(1), labels, hidden, cache, cache.positions - 1)
        assert torch.equal(rows[:, 0], hidden)


@pytest.mark.parametrize("ops", ["auto", "reference"])
@pytest.mark.parametrize("changes", [{}, {"family": "qwen2"}, {"classes": 2}], ids=str)
def test_evaluations_are_those_of_the_plain_loop(tmp_path, changes, ops):
    make_tiny_latent(tmp_path, **changes)
    checkpoint, model = open_checkpoint(tmp_path), load(tmp_path, ops=ops)
    loop = ReferenceLoop(checkpoint.facts, load_file(tmp_path / "model.safetensors"), 16)
    ids, label = [5, 9, 200, 33, 7], 1 if "classes" in changes else None
    cache = model.open_cache(1, 16)
    with torch.inference_mode():
        theirs, mine = loop.read(ids), model.prefill(torch.tensor([ids]), (5,), cache)
        assert torch.allclose(mine[0], theirs, atol=1e-4)
        for t in (0.0, 0.1, 0.5, 1.0):
            x = torch.randn(FLOW_WIDTH) * (64 * (1 - t) + t)
            scale = ((1 - t) ** 2 * 64.0**2 + t**2) ** -0.5
            labels = torch.full((1, 1), label or 0)
            at = model.grid((t,))
            for when in (type(at)(*(part[0] for part in at)), torch.tensor([t])):
                rows = model.flow(x[None, None], scale, when, labels, mine, cache, cache.positions - 1)
                wanted = loop.evaluate(theirs, x, t, label)
                assert torch.allclose(model.logits(rows[:, 0])[0], wanted, atol=2e-4), t


def test_frozen_modulation_starts_as_the_plain_block(tmp_path):
    model = load(make_tiny_latent(tmp_path, freezes_modulation=True))
    layers, _ = model.grid((0.0,))
    base = model.transformer.layers[1]
    zero, one = torch.zeros(64), torch.ones(64)
    for got, wanted in zip(layers[0, 0, 1], (base.input_norm, zero, one, base.post_norm, zero, one), strict=True):
        assert torch.allclose(got, wanted, atol=1e-6)


def test_a_full_weight_path_that_copies_the_base_equals_pairs_of_zero(tmp_path):
    pairs, full = tmp_path / "pairs", tmp_path / "full"
    make_tiny_latent(pairs), make_tiny_latent(full, has_full_weights=True)
    one, other = load_file(pairs / "model.safetensors"), load_file(full / "model.safetensors")
    for name in one:
        if name.endswith(".B"):
            one[name].zero_()
        elif name in other:
            other[name] = one[name]
    for name in [name for name in other if ".flow_" in name and name.endswith("_proj.weight")]:
        other[name] = one[name.replace("flow_", "")].clone()
    save_sharded(pairs, one), save_sharded(full, other)
    x, t = torch.randn(1, 1, FLOW_WIDTH), torch.tensor([0.5])
    rows = []
    for folder in (pairs, full):
        model = load(folder)
        cache = model.open_cache(1, 8)
        with torch.inference_mode():
            hidden = model.prefill(torch.tensor([[5, 9, 200]]), (3,), cache)
            rows.append(model.flow(x, 1.0, t, torch.zeros(1, 1, dtype=torch.int64), hidden, cache, cache.positions - 1))
    assert torch.allclose(*rows, atol=1e-5)


def test_a_sequence_of_flow_tokens_at_once_equals_them_one_by_one(tmp_path):
    model = load(make_tiny_latent(tmp_path), ops="reference")
    flow, ids, T = model.flow_path, torch.tensor([[5, 9, 200, 33, 7, 80]]), 6
    x, t = torch.randn(1, T, FLOW_WIDTH), torch.rand(T)
    with torch.inference_mode():
        cache = model.open_cache(1, T)
        model.transformer(ids, cache=cache)
        at, start = flow.embedded(t, None), flow.embedded(torch.zeros(T), None)
        together = flow.parallel(flow.encoded(x, 1.0), at, start, cache)
        conditions = flow.conditions(t)
        for position in range(T):
            layers = conditions.layers[position : position + 1]
            alone = flow(flow.encoded(x[:, position : position + 1], 1.0), layers, cache, torch.tensor([position]))
            assert torch.allclose(alone[:, 0], together[:, position], atol=1e-5)


def test_facts_travel_through_extra():
    latent = LatentFacts(classes=4, sigma=32.0)
    facts = ModelFacts(
        family="llama", width=8, mlp_width=8, layers=1, query_heads=1, kv_heads=1, head_width=8, vocab_size=8, max_positions=8,
        norm_eps=1e-5, rope=RopeFacts(), has_qkv_bias=False, has_tied_head=True, bos_id=None, eos_ids=(),
    )  # fmt: skip
    assert LatentFacts.of(replace(facts, extra=latent.to_extra())) == latent
    assert LatentFacts.of(facts) == LatentFacts()
