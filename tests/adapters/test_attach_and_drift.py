"""Merging rounds once and can be undone exactly; preflight names what does not fit; the drift of a merge is measured."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lad_engine.adapters.attach import attach, merge
from lad_engine.adapters.drift import drift_report, save_drift
from lad_engine.adapters.low_rank import Adapter, LowRank
from lad_engine.adapters.peft_folder import read_peft_folder
from lad_engine.adapters.preflight import preflight
from lad_engine.adapters.probe import probe_canvases, probe_logits
from lad_engine.adapters.write_peft import write_peft_folder
from lad_engine.errors import AdapterError
from lad_engine.model.transformer import Transformer
from lad_engine.text.codec import TextCodec

CANVAS = torch.arange(7, 27)[None]


def weights_of(transformer: Transformer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in transformer.slots().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), ("k_proj", "gate_proj", "up_proj", "down_proj", "o_proj", "lm_head")], ids=str)
def test_merged_equals_unmerged_and_both_go_away_without_a_trace(
    transformer: Transformer, make_adapter: Callable[..., Adapter], targets: tuple[str, ...]
) -> None:
    adapter = make_adapter(targets, norms={"model.layers.1.input_layernorm": torch.rand(64) + 0.5})
    before, plain = weights_of(transformer), probe_logits(transformer, CANVAS)
    attached = attach(transformer, adapter)
    beside = probe_logits(transformer, CANVAS)
    attached.detach()
    assert same(weights_of(transformer), before)
    merged = merge(transformer, adapter)
    within = probe_logits(transformer, CANVAS)
    assert torch.allclose(beside, within, rtol=1e-5, atol=1e-4)
    assert (within - plain).abs().max() > 0.1
    merged.unmerge()
    assert same(weights_of(transformer), before)
    merged.merge_again()
    assert torch.equal(probe_logits(transformer, CANVAS), within)


def test_a_bf16_merge_is_the_fp32_sum_rounded_once(
    base_folder: Path, open_base: Callable[..., Transformer], make_adapter: Callable[..., Adapter]
) -> None:
    transformer, adapter = open_base(base_folder, torch.bfloat16), make_adapter()
    name = "model.layers.0.self_attn.v_proj"
    original, pair = transformer.slots()[f"{name}.weight"].clone(), adapter.weights[name]
    merge(transformer, adapter)
    exact = original.double() + pair.scale * (pair.b.double() @ pair.a.double())
    half_ulp = 2.0 ** (exact.abs().log2().floor() - 8)
    # fp32 arithmetic may push a value that lies halfway to the other side, and no further
    error = (transformer.slots()[f"{name}.weight"].double() - exact).abs()
    assert bool((error <= half_ulp + 1e-6).all()) and float(error.max()) > 1e-4


def test_two_adapters_at_once_and_a_lost_original_are_refused(transformer: Transformer, make_adapter: Callable[..., Adapter]) -> None:
    adapter = make_adapter()
    attached = attach(transformer, adapter)
    for put in (attach, merge):
        with pytest.raises(AdapterError, match="Detach it first"):
            put(transformer, adapter)
    attached.detach()
    merged = merge(transformer, adapter, keep_originals=False)
    with pytest.raises(AdapterError, match="keep_originals"):
        merged.unmerge()
    with pytest.raises(AdapterError, match="merged already"):
        merged.merge_again()


def test_preflight_fills_in_the_mask_id_and_leaves_the_base_alone(
    transformer: Transformer, codec: TextCodec, make_adapter: Callable[..., Adapter]
) -> None:
    before = weights_of(transformer)
    adapter = make_adapter()
    report = preflight(transformer, codec, adapter)
    assert report.adapter.facts.mask_id == codec.encode("MASK")[0]
    assert report.parameters == adapter.parameters
    assert report.logit_change > 0
    assert same(weights_of(transformer), before)


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"mask_token": "HOLE"}, "'HOLE' is 2 tokens"),
        ({"mask_id": 5}, "mask_id is 5, expected"),
        ({"base_fingerprint": "f" * 64, "base_name": "owner/other"}, "owner/other"),
    ],
)
def test_facts_that_do_not_fit_this_base_are_refused(
    transformer: Transformer, codec: TextCodec, make_adapter: Callable[..., Adapter], facts: dict, words: str
) -> None:
    with pytest.raises(AdapterError) as caught:
        preflight(transformer, codec, make_adapter(**facts))
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert not any(layer.qkv.low_rank for layer in transformer.layers)


def test_another_base_of_the_same_shape_passes_when_only_shapes_are_asked_for(
    transformer: Transformer, codec: TextCodec, make_adapter: Callable[..., Adapter]
) -> None:
    foreign = preflight(transformer, codec, make_adapter(base_fingerprint="f" * 64), shapes_only=True)
    own = preflight(transformer, codec, make_adapter(base_fingerprint=transformer.facts.fingerprint))
    assert foreign.logit_change == own.logit_change > 0


def change(adapter: Adapter, module: str, **parts: torch.Tensor) -> Adapter:
    return dataclasses.replace(adapter, weights={**adapter.weights, module: dataclasses.replace(adapter.weights[module], **parts)})


def test_weights_that_do_not_fit_this_base_are_refused(
    transformer: Transformer, codec: TextCodec, make_adapter: Callable[..., Adapter], tmp_path: Path
) -> None:
    q = "model.layers.1.self_attn.q_proj"
    good = make_adapter()
    no_number = good.weights[q].a.clone()
    no_number[0, 0] = float("nan")
    extra = {**good.weights, "model.layers.9.self_attn.q_proj": good.weights[q]}
    cases = {
        "(60, 64)": change(good, q, b=torch.ones(60, 4)),
        "(64, 32)": change(good, q, a=torch.ones(4, 32)),
        "layers.9": dataclasses.replace(good, weights=extra),
        "norm model.norm": dataclasses.replace(good, norms={"model.norm": torch.ones(3)}),
        "model.layers.7.input_layernorm": dataclasses.replace(good, norms={"model.layers.7.input_layernorm": torch.ones(64)}),
        f"{q} holds values that are not numbers": change(good, q, a=no_number),
        "same with and without": dataclasses.replace(
            good, weights={m: LowRank(p.a, torch.zeros_like(p.b), p.scale) for m, p in good.weights.items()}
        ),
        "lm_head.weight": dataclasses.replace(good, base_copies={"lm_head.weight": torch.ones(320, 64)}),
    }
    for words, adapter in cases.items():
        with pytest.raises(AdapterError) as caught:
            preflight(transformer, codec, adapter)
        assert words in str(caught.value) and "\n" not in str(caught.value)
    same_copy = dataclasses.replace(good, base_copies={"lm_head.weight": transformer.head.projection.weight.detach().bfloat16()})
    preflight(transformer, codec, same_copy)
    # a PEFT folder says which modules it should hold, so one that lost a layer is noticed
    folder = write_peft_folder(tmp_path / "short", dataclasses.replace(good, weights={m: p for m, p in good.weights.items() if m != q}))
    settings = json.loads((folder / "adapter_config.json").read_text())
    settings["target_modules"] = ["q_proj", "v_proj"]
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(AdapterError, match=r"layers\.1\.self_attn\.q_proj is missing"):
        preflight(transformer, codec, read_peft_folder(folder))


def test_the_drift_of_a_merge_is_small_in_fp32_and_larger_in_bf16(
    base_folder: Path, open_base: Callable[..., Transformer], codec: TextCodec, make_adapter: Callable[..., Adapter], tmp_path: Path
) -> None:
    adapter, reports = make_adapter(), {}
    for dtype in (torch.float32, torch.bfloat16):
        transformer = open_base(base_folder, dtype)
        before = weights_of(transformer)
        reports[dtype] = drift_report(transformer, codec, adapter)
        assert same(weights_of(transformer), before)
        merged = merge(transformer, adapter)
        inside = weights_of(transformer)
        assert drift_report(transformer, codec, adapter, merged) == reports[dtype]
        assert same(weights_of(transformer), inside) and merged.is_merged
    exact, rounded = reports[torch.float32], reports[torch.bfloat16]
    assert exact.max_logit_difference < 1e-3 and exact.token_agreement == 1.0
    assert exact.max_logit_difference < rounded.max_logit_difference
    assert rounded.mean_logit_difference <= rounded.max_logit_difference
    assert exact.rows == sum(canvas.shape[1] for canvas in probe_canvases(codec, 0, 512))
    place = save_drift(rounded, tmp_path / "adapter.safetensors")
    assert json.loads(place.read_text()) == dataclasses.asdict(rounded)
    assert save_drift(rounded, tmp_path).name == "drift.json"
    assert "bfloat16" in rounded.sentence()
