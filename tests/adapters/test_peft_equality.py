"""The same adapter gives the same logits here and in `peft` itself, merged and unmerged, read and written."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lad_engine.adapters.attach import attach, merge
from lad_engine.adapters.low_rank import Adapter
from lad_engine.adapters.reader import read_adapter
from lad_engine.adapters.write_peft import write_peft_folder
from lad_engine.model.transformer import Transformer
from tiny_checkpoint import make_tiny

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

IDS = torch.arange(5, 45).remainder(200).view(2, 20)
CASES = {
    "query and value": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
    "all linear": {"r": 3, "lora_alpha": 6, "target_modules": "all-linear"},
    "the head too": {"r": 4, "lora_alpha": 4, "target_modules": ["q_proj", "lm_head"]},
    "rank stabilised": {"r": 16, "lora_alpha": 8, "use_rslora": True, "target_modules": ["k_proj", "o_proj", "gate_proj"]},
    "patterns": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "up_proj", "down_proj"],
        "rank_pattern": {"layers.1.self_attn.q_proj": 7, "down_proj": 2},
        "alpha_pattern": {"up_proj": 3},
    },
    "patterns, rank stabilised": {
        "r": 4,
        "lora_alpha": 8,
        "use_rslora": True,
        "target_modules": ["q_proj", "v_proj"],
        "rank_pattern": {"q_proj": 9},
        "alpha_pattern": {"v_proj": 5},
    },
    "one layer": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1]},
    "a regular expression": {"r": 4, "lora_alpha": 8, "target_modules": r".*\.0\.(self_attn\.[qk]_proj|mlp\.up_proj)"},
}


def trained(folder: Path, out: Path, **config: object) -> torch.nn.Module:
    """A PEFT model on the base in `folder` with random B, saved to `out`."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **config)).eval()
        generator = torch.Generator().manual_seed(3)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
        model.save_pretrained(out)
    return model


def ours(transformer: Transformer) -> torch.Tensor:
    with torch.no_grad():
        return transformer.head.logits(transformer(IDS, is_causal=True).flatten(0, 1)).view(*IDS.shape, -1)


def theirs(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def relative(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_peft_merged_and_unmerged(case: str, base_folder: Path, tmp_path: Path, open_base: Callable[..., Transformer]) -> None:
    model = trained(base_folder, tmp_path / "adapter", **CASES[case])
    unmerged = theirs(model)
    merged = theirs(model.merge_and_unload())
    adapter, transformer = read_adapter(tmp_path / "adapter"), open_base(base_folder)
    plain = ours(transformer)
    attached = attach(transformer, adapter)
    assert relative(ours(transformer), unmerged) < 1e-5
    attached.detach()
    merge(transformer, adapter)
    assert relative(ours(transformer), merged) < 1e-5
    assert relative(plain, merged) > 1e-2


@pytest.mark.parametrize("case", ["all linear", "the head too", "patterns", "patterns, rank stabilised", "one layer"])
def test_a_folder_we_write_loads_in_peft(case: str, base_folder: Path, tmp_path: Path, open_base: Callable[..., Transformer]) -> None:
    trained(base_folder, tmp_path / "theirs", **CASES[case])
    adapter, transformer = read_adapter(tmp_path / "theirs"), open_base(base_folder)
    write_peft_folder(tmp_path / "ours", adapter)
    again = read_adapter(tmp_path / "ours")
    assert {m: (p.scale, p.rank) for m, p in again.weights.items()} == {m: (p.scale, p.rank) for m, p in adapter.weights.items()}
    with warnings.catch_warnings():
        # missing keys would be a warning: PEFT must create exactly the modules we stored
        warnings.simplefilter("error", UserWarning)
        loaded = peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(base_folder), tmp_path / "ours").eval()
    created = {name.split(".lora_A")[0].removeprefix("base_model.model.") for name, _ in loaded.named_parameters() if "lora_A" in name}
    assert created == set(adapter.weights)
    attach(transformer, adapter)
    assert relative(ours(transformer), theirs(loaded)) < 1e-5


def test_a_tied_head_is_adapted_without_the_embedding(tmp_path: Path, open_base: Callable[..., Transformer]) -> None:
    folder = make_tiny(tmp_path / "tied", "smollm2")
    # PEFT's own merge would write into the shared embedding, so its unmerged logits are the measure for both
    expected = theirs(trained(folder, tmp_path / "adapter", r=4, lora_alpha=8, target_modules=["lm_head", "v_proj"]))
    adapter, transformer = read_adapter(tmp_path / "adapter"), open_base(folder)
    embedding, before = transformer.embed.clone(), ours(transformer)
    attached = attach(transformer, adapter)
    assert relative(ours(transformer), expected) < 1e-5
    attached.detach()
    merged = merge(transformer, adapter)
    assert relative(ours(transformer), expected) < 1e-5
    assert torch.equal(transformer.embed, embedding)
    merged.unmerge()
    assert torch.equal(ours(transformer), before)
    assert transformer.head.projection.weight is transformer.embed


def test_the_trained_norms_of_the_authors_are_used(base_folder: Path, tmp_path: Path, open_base: Callable[..., Transformer]) -> None:
    model = trained(base_folder, tmp_path / "adapter", **CASES["query and value"])
    state = {name: p.detach() * 1.5 + 0.1 for name, p in model.named_parameters() if "norm" in name}
    torch.save(state, tmp_path / "adapter" / "normalization_state.pt")
    model.load_state_dict(state, strict=False)
    adapter, transformer = read_adapter(tmp_path / "adapter"), open_base(base_folder)
    assert len(adapter.norms) == len(state) == 5
    before = ours(transformer)
    for put in (attach, merge):
        placed = put(transformer, adapter)
        assert relative(ours(transformer), theirs(model)) < 1e-5
        placed.detach() if put is attach else placed.unmerge()
        assert torch.equal(ours(transformer), before)
    again: Adapter = read_adapter(write_peft_folder(tmp_path / "again", adapter))
    assert all(torch.equal(again.norms[name], norm) for name, norm in adapter.norms.items())
