"""Our single-file form keeps every fact and value, and appears whole or not at all."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lad_engine.adapters import single_file, whole_files
from lad_engine.adapters.low_rank import Adapter, LowRank
from lad_engine.adapters.reader import read_adapter
from lad_engine.adapters.single_file import read_single_file, save_single_file
from lad_engine.adapters.write_peft import write_peft_folder
from lad_engine.errors import AdapterError

FACTS = {
    "name": "tiny-lad",
    "mask_id": 264,
    "predicts_next_token": True,
    "prompt_format": "raw",
    "system_prompt": "Be brief.\nAnd kind: \u00fc.",
    "corruption": "mask_only",
    "profile": "llada",
    "base_name": "owner/base",
    "base_fingerprint": "ab" * 32,
    "eos_id": 2,
    "extra": {"updates": 12, "data": ["a", "b"]},
}


@pytest.fixture
def adapter(make_adapter: Callable[..., Adapter]) -> Adapter:
    made = make_adapter(("q_proj", "lm_head"), norms={"model.norm": torch.rand(64)}, **FACTS)
    pair = made.weights["lm_head"]
    # one module with a scale that no alpha of the facts explains, in full double precision
    return dataclasses.replace(made, weights={**made.weights, "lm_head": LowRank(pair.a, pair.b, 1 / 3)})


def test_fp32_files_and_peft_folders_keep_everything(adapter: Adapter, tmp_path: Path) -> None:
    save_single_file(tmp_path / "one.safetensors", adapter, dtype="float32")
    write_peft_folder(tmp_path / "folder", adapter)
    for path in (tmp_path / "one.safetensors", tmp_path / "folder"):
        again = read_adapter(path)
        assert again.facts == adapter.facts
        assert again.path == path
        assert again.weights.keys() == adapter.weights.keys()
        for module, pair in adapter.weights.items():
            assert again.weights[module].scale == pytest.approx(pair.scale, rel=1e-15)
            assert torch.equal(again.weights[module].a, pair.a) and torch.equal(again.weights[module].b, pair.b)
        assert torch.equal(again.norms["model.norm"], adapter.norms["model.norm"])


def test_bf16_files_are_half_as_large_and_rounded_once(adapter: Adapter, tmp_path: Path) -> None:
    small = save_single_file(tmp_path / "small.safetensors", adapter)
    large = save_single_file(tmp_path / "large.safetensors", adapter, dtype="float32")
    assert small.stat().st_size < 0.6 * large.stat().st_size
    again = read_single_file(small)
    pair = adapter.weights["lm_head"]
    assert torch.equal(again.weights["lm_head"].a, pair.a.bfloat16().float())
    assert again.weights["lm_head"].scale == pair.scale


def test_a_folder_with_one_adapter_file_is_read(adapter: Adapter, tmp_path: Path) -> None:
    save_single_file(tmp_path / "run" / "adapter.safetensors", adapter)
    assert read_adapter(tmp_path / "run").facts == adapter.facts


def refusal(path: Path) -> str:
    with pytest.raises(AdapterError) as caught:
        read_single_file(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_damaged_and_foreign_files_are_refused(adapter: Adapter, tmp_path: Path) -> None:
    path = save_single_file(tmp_path / "a.safetensors", adapter)
    whole = path.read_bytes()
    for broken in (b"", b"\x01", whole[:100], whole[:-7], b"\xff" * 64):
        path.write_bytes(broken)
        assert "damaged" in refusal(path)
    assert "no such file" in refusal(tmp_path / "missing.safetensors")
    save_file({"x": torch.ones(2)}, path)
    assert "lad_engine.convert" in refusal(path)
    write_peft_folder(tmp_path / "folder", adapter)
    assert "PEFT folder" in refusal(tmp_path / "folder" / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": "2"}, "version"),
        ({"facts": "{"}, "facts"),
        ({"facts": "[]"}, "facts"),
        ({"facts": json.dumps({"name": "x"})}, "fact rank is missing"),
        ({"scales": json.dumps({"lm_head": "big"})}, "scale of lm_head"),
        ({"fact": {"rank": "4"}}, "fact rank"),
        ({"fact": {"surprise": 1}}, "fact surprise is unknown"),
        ({"fact": {"targets": "q_proj"}}, "fact targets"),
        ({"tensor": "model.layers.0.mlp.weight"}, "mlp.weight is unknown"),
        ({"tensor": "model.x.lora_A.weight"}, "no lora_B"),
    ],
)
def test_metadata_that_does_not_fit_is_refused(adapter: Adapter, tmp_path: Path, change: dict, words: str) -> None:
    path = save_single_file(tmp_path / "a.safetensors", adapter)
    with single_file.safe_open(str(path), framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    if "fact" in change:
        metadata["facts"] = json.dumps({**json.loads(metadata["facts"]), **change["fact"]})
    elif "tensor" in change:
        tensors[change["tensor"]] = torch.ones(2, 2)
    else:
        metadata.update(change)
    save_file(tensors, path, metadata=metadata)
    assert words in refusal(path)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(adapter: Adapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = save_single_file(tmp_path / "a.safetensors", adapter)
    folder = write_peft_folder(tmp_path / "folder", adapter)
    before = (file.read_bytes(), (folder / "adapter_model.safetensors").read_bytes())

    def full(tensors: dict, path: str, metadata: dict) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(whole_files, "save_file", full)
    with pytest.raises(AdapterError, match="No space left"):
        save_single_file(file, adapter)
    with pytest.raises(AdapterError, match="No space left"):
        write_peft_folder(folder, adapter)
    assert (file.read_bytes(), (folder / "adapter_model.safetensors").read_bytes()) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "folder"]


def test_nothing_else_is_overwritten(adapter: Adapter, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "keep.txt").write_text("mine")
    with pytest.raises(AdapterError, match="Choose another name"):
        write_peft_folder(tmp_path / "notes", adapter)
    with pytest.raises(AdapterError, match="is a folder"):
        save_single_file(tmp_path / "notes", adapter)
    # A pipe or a device would be replaced by a file of its name.
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(AdapterError, match="pipe: is no regular file"):
        save_single_file(tmp_path / "pipe", adapter)
    (tmp_path / "pipe").unlink()
    with pytest.raises(AdapterError, match="bfloat16, float32"):
        save_single_file(tmp_path / "x.safetensors", adapter, dtype="int8")
    with pytest.raises(AdapterError, match="cannot be stored"):
        save_single_file(tmp_path / "x.safetensors", adapter.with_facts(extra={"x": object()}))
    assert (tmp_path / "notes" / "keep.txt").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]
    # an older adapter folder of the same name is replaced as a whole
    folder = write_peft_folder(tmp_path / "f", adapter)
    (folder / "stale.txt").write_text("old")
    write_peft_folder(folder, adapter)
    assert not (folder / "stale.txt").exists()


def test_what_is_written_can_be_read_by_whom_other_new_files_can(adapter: Adapter, tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    written = [save_single_file(tmp_path / "a.safetensors", adapter), *write_peft_folder(tmp_path / "f", adapter).iterdir()]
    assert {path.stat().st_mode for path in written} == {(tmp_path / "plain").stat().st_mode}
