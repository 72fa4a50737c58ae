"""Reading PEFT folders by hand-made files: every refusal is one sentence that names the field."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lad_engine.adapters.low_rank import Adapter
from lad_engine.adapters.reader import read_adapter
from lad_engine.errors import AdapterError, DownloadError

Q = "base_model.model.model.layers.0.self_attn.q_proj"


def write(folder: Path, config: dict | None = None, tensors: dict | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    known = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "base_model_name_or_path": "owner/base"}
    (folder / "adapter_config.json").write_text(json.dumps({**known, **(config or {})}))
    pair = {f"{Q}.lora_A.weight": torch.ones(2, 6, dtype=torch.bfloat16), f"{Q}.lora_B.weight": torch.ones(8, 2, dtype=torch.bfloat16)}
    save_file(tensors if tensors is not None else pair, folder / "adapter_model.safetensors")
    return folder


def refusal(source: Path | str) -> str:
    with pytest.raises(AdapterError) as caught:
        read_adapter(source)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 500
    return text


def test_a_plain_folder_is_read_in_fp32_with_its_facts(tmp_path: Path) -> None:
    adapter: Adapter = read_adapter(write(tmp_path / "mine"))
    pair = adapter.weights["model.layers.0.self_attn.q_proj"]
    assert (pair.a.dtype, tuple(pair.a.shape), tuple(pair.b.shape), pair.scale) == (torch.float32, (2, 6), (8, 2), 2.0)
    assert (adapter.facts.name, adapter.facts.base_name, adapter.facts.targets) == ("mine", "owner/base", ("q_proj",))
    assert (adapter.facts.mask_token, adapter.facts.mask_id, adapter.facts.prompt_format) == ("MASK", -1, "chat")
    assert adapter.parameters == 2 * (6 + 8)


@pytest.mark.parametrize("prefix", ["base_model.model.model.layers.0", "base_model.model.layers.0", "model.layers.0"])
@pytest.mark.parametrize("ending", [".weight", ".default.weight"])
def test_every_way_peft_writes_a_name_is_understood(tmp_path: Path, prefix: str, ending: str) -> None:
    name = f"{prefix}.self_attn.q_proj"
    tensors = {f"{name}.lora_A{ending}": torch.ones(2, 6), f"{name}.lora_B{ending}": torch.ones(8, 2)}
    assert list(read_adapter(write(tmp_path / "a", None, tensors)).weights) == ["model.layers.0.self_attn.q_proj"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("peft_type", "LOHA"),
        ("use_dora", True),
        ("bias", "lora_only"),
        ("lora_bias", True),
        ("fan_in_fan_out", True),
        ("modules_to_save", ["lm_head"]),
        ("trainable_token_indices", [3]),
        ("target_parameters", ["experts.w"]),
        ("layer_replication", [[0, 2]]),
        ("use_qalora", True),
        ("alora_invocation_tokens", [1]),
        ("init_lora_weights", "pissa_niter_4"),
        ("target_modules", None),
        ("target_modules", [1]),
        ("target_modules", "q_proj("),
        ("r", 0),
        ("r", "8"),
        ("lora_alpha", None),
        ("rank_pattern", [2]),
        ("rank_pattern", {"q_proj": 0}),
        ("rank_pattern", {"q_proj": 3}),
        ("alpha_pattern", {"q_proj": "a"}),
    ],
)
def test_a_config_we_would_compute_wrongly_is_refused_by_field(tmp_path: Path, field: str, value: object) -> None:
    assert field in refusal(write(tmp_path / "a", {field: value}))


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({}, "no lora_A/lora_B"),
        ({f"{Q}.lora_A.weight": torch.ones(2, 6)}, "no lora_B"),
        ({f"{Q}.lora_A.weight": torch.ones(2, 6), f"{Q}.lora_B.weight": torch.ones(8, 3)}, "rank 2 and lora_B of rank 3"),
        ({f"{Q}.lora_A.weight": torch.ones(3, 6), f"{Q}.lora_B.weight": torch.ones(8, 3)}, "r is 2"),
        ({f"{Q}.lora_A.weight": torch.ones(6), f"{Q}.lora_B.weight": torch.ones(8, 2)}, "two-dimensional"),
        ({f"{Q}.lora_A.weight": torch.ones(2, 6).int(), f"{Q}.lora_B.weight": torch.ones(8, 2)}, "floating point"),
        ({f"{Q}.lora_A.a.weight": torch.ones(2, 6), f"{Q}.lora_B.b.weight": torch.ones(8, 2)}, "adapters a, b"),
        ({f"{Q}.lora_magnitude_vector": torch.ones(8)}, "use_dora"),
        ({"base_model.model.model.embed_tokens.lora_embedding_A": torch.ones(2, 6)}, "embeddings"),
        ({"base_model.model.lm_head.modules_to_save.weight": torch.ones(2, 6)}, "modules_to_save"),
        ({f"{Q}.base_layer.bias": torch.ones(8)}, "biases"),
        ({"surprise": torch.ones(8)}, "surprise is unknown"),
        (
            {
                f"{Q.replace('q_proj', 'k_proj')}.lora_A.weight": torch.ones(2, 6),
                f"{Q.replace('q_proj', 'k_proj')}.lora_B.weight": torch.ones(8, 2),
            },
            "k_proj",
        ),
    ],
)
def test_tensors_that_are_not_whole_pairs_of_the_config_are_refused(tmp_path: Path, tensors: dict, words: str) -> None:
    assert words in refusal(write(tmp_path / "a", None, tensors))


def test_missing_and_damaged_files_are_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "adapter_config.json is missing" in refusal(empty)
    folder = write(tmp_path / "a")
    (folder / "adapter_model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{broken")
    assert "damaged" in refusal(folder)
    (folder / "adapter_model.safetensors").unlink()
    assert "adapter_model.safetensors is missing" in refusal(folder)
    (folder / "adapter_model.bin").write_bytes(b"pickle")
    assert "lad_engine.convert" in refusal(folder)
    (folder / "adapter_config.json").write_text("{")
    assert "JSON" in refusal(folder)
    (folder / "adapter_config.json").write_text("[]")
    assert "expected a JSON object" in refusal(folder)
    assert "no such file or folder" in refusal(tmp_path / "nothing")
    (tmp_path / "model.pth").write_bytes(b"")
    assert "lad_engine.convert" in refusal(tmp_path / "model.pth")


def test_a_hub_id_offline_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DownloadError) as caught:
        read_adapter("nobody/no-such-adapter")
    assert "\n" not in str(caught.value) and "nobody/no-such-adapter" in str(caught.value)


def test_the_authors_files_fill_in_what_peft_does_not_record(tmp_path: Path) -> None:
    folder = write(tmp_path / "run")
    (folder / "resolved_config.json").write_text(json.dumps({"corruption_mode": "mask_only", "mask_token": "<?>", "lora_r": 2}))
    (folder / "mask_token.json").write_text(json.dumps({"mask_token_id": 77, "mask_ids": [77], "decoded": "<?>"}))
    facts = read_adapter(folder).facts
    assert (facts.mask_token, facts.mask_id, facts.corruption, facts.profile) == ("<?>", 77, "mask_only", "retain")
    assert facts.extra["run"]["lora_r"] == 2
    (folder / "mask_token.json").write_text(json.dumps({"mask_token_id": "77"}))
    assert "mask_token.json" in refusal(folder)
    (folder / "mask_token.json").unlink()
    (folder / "lad_facts.json").write_text(json.dumps({"predicts_next_token": "no"}))
    assert "fact predicts_next_token is 'no', expected true or false" in refusal(folder)


def test_norm_files_hold_norms_only_and_execute_nothing(tmp_path: Path) -> None:
    folder = write(tmp_path / "a")
    state = {"base_model.model.model.norm.weight": torch.full((6,), 2.0, dtype=torch.bfloat16)}
    torch.save(state, folder / "normalization_state.pt")
    norm = read_adapter(folder).norms["model.norm"]
    assert norm.dtype == torch.float32 and torch.equal(norm, torch.full((6,), 2.0))
    torch.save({"base_model.model.lm_head.weight": torch.ones(3, 3)}, folder / "normalization_state.pt")
    assert "lm_head" in refusal(folder)

    class Hostile:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save({"base_model.model.model.norm.weight": Hostile()}, folder / "normalization_state.pt")
    assert "normalization_state.pt" in refusal(folder)
    assert not (tmp_path / "executed").exists()
    (folder / "normalization_state.pt").unlink()
    torch.save({}, folder / "trainable_base_state.pt")
    assert "trainable_base_state.pt" in refusal(folder)
