"""8-bit projections on every family: errors within what the rounding allows, 8-bit storage, low-rank paths on top, clear refusals."""

from __future__ import annotations

import pytest
import torch

from lad_engine import Engine
from lad_engine.adapters.attach import merge
from lad_engine.adapters.low_rank import Adapter
from lad_engine.adapters.swap import AdapterSlot
from lad_engine.contracts import AdapterFacts
from lad_engine.errors import AdapterError, ConfigError
from lad_engine.model.precision import STORED, QuantisedProjection, QuantisedRows, check_precision, quantise
from lad_engine.model.transformer import Transformer
from lad_engine.model.weights import open_checkpoint
from lad_engine.ops import select_ops
from tiny_checkpoint import FAMILIES, make_tiny

REFERENCE = select_ops("reference", "cpu")
# Arithmetic in fp32 over a hundred terms, as a share of the largest result.
FLOAT32_SLACK = 1e-5


def tiny_model(folder, family: str, dtype: torch.dtype = torch.float32, ops=REFERENCE) -> Transformer:
    checkpoint = open_checkpoint(make_tiny(folder, family))
    return Transformer.from_tensors(checkpoint.facts, checkpoint.tensors(), ops, dtype)


def largest_error(values: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Half a step of int8; of e4m3 half an ulp of its three bits, or half its least step."""
    if dtype == torch.int8:
        return (scale / 2)[..., None].expand_as(values)
    return values.abs() * 2.0**-4 + (scale * 2.0**-10)[..., None]


@pytest.mark.parametrize("precision", STORED)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_projection_errs_no_more_than_its_rounding_allows(tmp_path, family, precision):
    plain, model = tiny_model(tmp_path / "a", family), tiny_model(tmp_path / "b", family)
    quantise(model, precision)
    for one, other in zip(plain.projections(), model.projections(), strict=True):
        x = torch.randn(3, 7, one.weight.shape[1]) * 3
        exact, got = one(x, REFERENCE.lora_linear), other(x, REFERENCE.lora_linear)
        wide = other.weight.float() * other.weight_scale[:, None]
        weight_error = largest_error(one.weight, other.weight_scale, STORED[precision])
        bound = x.abs() @ weight_error.T
        if precision != "int8_weights":
            _, x_scale = REFERENCE.quantise_rows(x, STORED[precision])
            bound = bound + largest_error(x, x_scale, STORED[precision]) @ wide.abs().T
        assert isinstance(other, QuantisedProjection)
        assert bool(((got - exact).abs() <= bound + FLOAT32_SLACK * exact.abs().max()).all())
        # Far from the bound, which no typical error reaches, a dropped or doubled scale would show.
        assert (got - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("family", FAMILIES)
def test_int8_weights_are_the_model_whose_weights_were_rounded(tmp_path, family):
    plain, model = tiny_model(tmp_path / "a", family), tiny_model(tmp_path / "b", family, ops=select_ops("auto", "cpu"))
    quantise(model, "int8_weights")
    for one, other in zip(plain.projections(), model.projections(), strict=True):
        one.weight = torch.nn.Parameter(other.weight.float() * other.weight_scale[:, None], requires_grad=False)
    ids = torch.arange(5, 45).view(2, 20)
    torch.testing.assert_close(model.head.logits(model(ids)), plain.head.logits(plain(ids)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("precision", ["int8", "fp8"])
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_quantised_by_the_norm_are_those_the_projection_would_make(tmp_path, family, precision):
    model, ids = tiny_model(tmp_path, family), torch.arange(5, 45).view(2, 20)
    plain = model.head.logits(model(ids))
    quantise(model, precision)
    assert isinstance(model.ops.add_rmsnorm(torch.ones(2, 48), None, torch.ones(48))[0], QuantisedRows)
    fused = model.head.logits(model(ids))
    model.ops = model.head.ops = REFERENCE
    assert torch.equal(model.head.logits(model(ids)), fused)
    assert 0 < (fused - plain).norm() < 0.2 * plain.norm()


@pytest.mark.parametrize("precision", STORED)
def test_weights_are_stored_in_eight_bits_and_the_rest_stays(tmp_path, precision):
    model = tiny_model(tmp_path, "smollm2", torch.bfloat16)
    quantise(model, precision)
    assert {p.weight.dtype for p in model.projections()} == {STORED[precision]}
    assert model.head.projection.weight is not model.embed and model.embed.dtype == model.head.norm.dtype == torch.bfloat16
    wide = sum(parameter.numel() for parameter in model.parameters() if parameter.dtype == torch.bfloat16)
    assert wide == model.embed.numel() + (2 * len(model.layers) + 1) * model.facts.width
    assert model(torch.arange(5, 25)[None]).dtype == torch.bfloat16


@pytest.mark.parametrize("precision", STORED)
def test_low_rank_paths_are_added_on_top_unrounded(tmp_path, precision):
    model = tiny_model(tmp_path, "llama")
    projection, start, stop = model.projection("model.layers.0.self_attn.v_proj")
    x, a, b = torch.randn(2, 5, 64), torch.randn(4, 64), torch.randn(stop - start, 4)
    projection.attach(a, b, 0.5, start, stop)
    quantise(model, precision)
    # The wide rows are needed beside the quantised ones, so no norm may hand on quantised rows alone.
    assert model.ops is REFERENCE
    layer = model.layers[0]
    beside = layer.qkv(x, REFERENCE.lora_linear)
    layer.qkv.detach()
    without = layer.qkv(x, REFERENCE.lora_linear)
    assert torch.equal(beside[..., :start], without[..., :start]) and torch.equal(beside[..., stop:], without[..., stop:])
    torch.testing.assert_close(beside[..., start:stop] - without[..., start:stop], 0.5 * x @ a.T @ b.T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_engine_in_int8_answers_alike_alone_and_in_a_batch(tmp_path, family):
    engine = Engine.load(make_tiny(tmp_path, family), adapter=None, precision="int8", dtype="float32")
    params = [engine.sampling("paper", max_new_tokens=6 + 3 * i, steps=3, seed=i, top_k=3) for i in range(2)]
    together = engine.generate(["One.", "Another prompt"], params)
    assert [result.precision for result in together] == ["int8", "int8"]
    for prompt, one, result in zip(["One.", "Another prompt"], params, together, strict=True):
        assert engine.generate(prompt, one)[0].token_ids == result.token_ids


def test_fp8_is_refused_where_nothing_computes_it(tmp_path):
    with pytest.raises(ConfigError, match=r"precision is fp8, but the device is cpu, expected a GPU of sm_89 or newer\. Use --precision"):
        Engine.load(make_tiny(tmp_path), adapter=None, precision="fp8", device="cpu")
    emulated = Engine.load(tmp_path, adapter=None, precision="fp8", device="cpu", ops="quantised_linear=reference")
    assert emulated.model.transformer.head.projection.weight.dtype == torch.float8_e4m3fn


@pytest.mark.parametrize(
    ("capability", "precision", "words"), [((8, 0), "fp8", "sm_80, expected sm_89"), ((7, 0), "int8", "sm_70, expected sm_75")]
)
def test_an_older_gpu_is_named(monkeypatch, capability, precision, words):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    with pytest.raises(ConfigError, match=words):
        check_precision(precision, torch.device("cuda", 0), {"quantised_linear": "library"})
    check_precision("int8_weights", torch.device("cuda", 0), {"quantised_linear": "library"})


def test_fp8_is_refused_where_a_row_must_not_follow_its_batch(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    with pytest.raises(ConfigError, match="precision is fp8 with batch_invariant, expected int8 or auto"):
        check_precision("fp8", torch.device("cuda", 0), {"quantised_linear": "library"}, batch_invariant=True)
    check_precision("int8", torch.device("cuda", 0), {"quantised_linear": "library"}, batch_invariant=True)


def test_a_quantised_decoder_takes_no_adapter_and_no_second_rounding(tmp_path):
    model = tiny_model(tmp_path, "llama")
    quantise(model, "int8")
    adapter = Adapter(AdapterFacts("a", 1, 1.0, (), "MASK", 0), weights={}, norms={})
    with pytest.raises(AdapterError, match="quantised already"):
        merge(model, adapter)
    with pytest.raises(AdapterError, match="swap: this engine's weights are quantised"):
        AdapterSlot(model, None, tuple).check(adapter)
    with pytest.raises(ConfigError, match="quantised already"):
        quantise(model, "fp8")
    model.layers[0].qkv.stack = object()
    with pytest.raises(AdapterError, match="several adapters"):
        model(torch.arange(5)[None])
