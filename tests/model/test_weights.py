"""Checkpoints are opened without copying, and refused by name when anything does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm

from lad_engine.errors import CheckpointError, DownloadError
from lad_engine.model.weights import open_checkpoint
from tiny_checkpoint import FAMILIES, make_tiny, tiny_config, tiny_tensors


def rewrite(folder: Path, **changes: torch.Tensor | None) -> None:
    """Change tensors of a single-file checkpoint (None removes); dots in names are written as __."""
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in changes.items():
        tensors.pop(name.replace("__", "."), None)
        if tensor is not None:
            tensors[name.replace("__", ".")] = tensor
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_tensors_are_streamed_as_stored(tmp_path: Path, family: str, shards: int) -> None:
    checkpoint = open_checkpoint(make_tiny(tmp_path / family, family, shards=shards, dtype=torch.bfloat16))
    expected = tiny_tensors(tiny_config(family), torch.bfloat16)
    streamed = list(checkpoint.tensors())
    assert len(streamed) == len(expected) and tuple(sorted(expected)) == checkpoint.names()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in streamed)
    assert all(checkpoint.shapes[name] == tuple(tensor.shape) for name, tensor in streamed)
    assert checkpoint.facts.name == family


def test_the_fingerprint_is_of_the_model_not_of_its_files(tmp_path: Path) -> None:
    def fingerprint(name: str, **options: object) -> str:
        return open_checkpoint(make_tiny(tmp_path / name, "smollm2", **options)).facts.fingerprint

    first = fingerprint("first")
    assert len(first) == 64
    assert fingerprint("sharded", shards=2) == first
    assert fingerprint("rounded", dtype=torch.bfloat16) == first
    assert fingerprint("other", seed=1) != first
    copied = tmp_path / "first"
    rewrite(copied, lm_head__weight=load_file(copied / "model.safetensors")["model.embed_tokens.weight"].clone())
    assert open_checkpoint(copied).facts.fingerprint == first


def test_a_change_anywhere_changes_the_fingerprint(tmp_path: Path) -> None:
    folder = make_tiny(tmp_path / "tiny")
    before = open_checkpoint(folder).facts.fingerprint
    rewrite(folder, model__norm__weight=torch.full((64,), 2.0))
    assert open_checkpoint(folder).facts.fingerprint != before


def test_stored_rotary_buffers_are_ignored(tmp_path: Path) -> None:
    folder = make_tiny(tmp_path / "tiny")
    rewrite(folder, model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(8))
    assert not any("inv_freq" in name for name in open_checkpoint(folder).names())


@pytest.mark.parametrize(
    "changes,sentence",
    [
        ({"model__norm__weight": None}, "model.norm.weight is missing"),
        ({"lm_head__weight": None}, "lm_head.weight is missing"),
        ({"model__norm__bias": torch.zeros(64)}, "model.norm.bias is not part of a llama model"),
        ({"model__layers__0__self_attn__q_proj__bias": torch.zeros(64)}, "self_attn.q_proj.bias is not part of a llama model"),
        ({"model__layers__2__mlp__up_proj__weight": torch.zeros(128, 64)}, "model.layers.2.mlp.up_proj.weight is not part of"),
        ({"model__norm__weight": torch.zeros(63)}, r"model.norm.weight is \(63,\), expected \(64,\)"),
        ({"model__layers__1__self_attn__k_proj__weight": torch.zeros(64, 64)}, r"k_proj.weight is \(64, 64\), expected \(32, 64\)"),
        ({"model__norm__weight": torch.zeros(64, dtype=torch.int8)}, "model.norm.weight is I8, expected one of F64, F32"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(tmp_path: Path, changes: dict, sentence: str) -> None:
    folder = make_tiny(tmp_path / "tiny")
    rewrite(folder, **changes)
    with pytest.raises(CheckpointError, match=sentence):
        open_checkpoint(folder)


def test_many_missing_tensors_are_counted(tmp_path: Path) -> None:
    folder = make_tiny(tmp_path / "tiny")
    save_file({"model.norm.weight": torch.ones(64)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lm_head.weight, model.embed_tokens.weight, .* and 17 more are missing"):
        open_checkpoint(folder)


@pytest.mark.parametrize("size", [0, 5, 100, -1000])
def test_a_damaged_file_is_named(tmp_path: Path, size: int) -> None:
    folder = make_tiny(tmp_path / "tiny", shards=2)
    path = folder / "model-00002-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002\.safetensors: is not a complete safetensors file"):
        open_checkpoint(folder)


def test_missing_and_misleading_files_are_named(tmp_path: Path) -> None:
    folder = make_tiny(tmp_path / "tiny", shards=2)
    (folder / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00001-of-00002\.safetensors is missing, expected because the index names it"):
        open_checkpoint(folder)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": "../../secret.safetensors"}}))
    with pytest.raises(CheckpointError, match="expected files of its own folder"):
        open_checkpoint(folder)
    index.write_text("{}")
    with pytest.raises(CheckpointError, match="weight_map is missing"):
        open_checkpoint(folder)
    index.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is missing, .* pytorch_model\.bin is a pickle, which is never loaded"):
        open_checkpoint(folder)


@pytest.mark.parametrize("source", ["no-such-folder", "./a/b", "a/b/c", "missing.gguf", "owner/missing.gguf", ""])
def test_a_source_that_is_nowhere_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"expected a model folder, a \.gguf file or a hub id|config\.json is missing"):
        open_checkpoint(source)
    with pytest.raises(CheckpointError, match=r"is a \.safetensors file, expected a model folder"):
        open_checkpoint("tiny.safetensors")


def test_a_hub_id_is_fetched_with_progress_and_without_pickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    folder, asked, seen = make_tiny(tmp_path / "snapshot"), {}, []

    def snapshot(repository: str, allow_patterns: list[str], tqdm_class: type[tqdm]) -> str:
        asked.update(repository=repository, patterns=allow_patterns)
        with tqdm_class(total=100, unit="B", desc="Downloading", mininterval=0) as bar:
            bar.update(60)
            bar.refresh()
        with tqdm_class(range(3), desc="Fetching 3 files") as bar:
            assert list(bar) == [0, 1, 2]
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    checkpoint = open_checkpoint("owner/name", progress=lambda *report: seen.append(report))
    assert (checkpoint.facts.name, checkpoint.folder, asked["repository"]) == ("owner/name", folder, "owner/name")
    assert not any("bin" in pattern for pattern in asked["patterns"])
    assert ("downloading owner/name", 60, 100) in seen and {label for label, _, _ in seen} == {"downloading owner/name"}
    assert open_checkpoint("owner/name").facts == checkpoint.facts
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "error,sentence",
    [
        (LocalEntryNotFoundError("offline"), "not in the hub cache while HF_HUB_OFFLINE is set. Run `hf download owner/name` once"),
        (RuntimeError("connection reset\nby peer"), r"the download failed \(connection reset\). Run the same command again"),
        (OSError(28, "No space left on device"), r"the download failed \(.*No space left on device.*\)"),
    ],
)
def test_a_hub_failure_is_one_sentence(monkeypatch: pytest.MonkeyPatch, error: Exception, sentence: str) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    def snapshot(*arguments: object, **options: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    with pytest.raises(DownloadError, match=f"^owner/name: .*{sentence}"):
        open_checkpoint("owner/name")


def test_offline_without_a_cache_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadError, match="hf download owner/no-such-model-anywhere"):
        open_checkpoint("owner/no-such-model-anywhere")
