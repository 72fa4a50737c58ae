"""GGUF files become Hugging Face folders once: exact tensors, the right config, a working tokenizer, nothing left on failure."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tiny_gguf import write_tiny_gguf
from tokenizers import Tokenizer

from lad_engine.contracts import RopeFacts
from lad_engine.errors import CheckpointError, DownloadError
from lad_engine.model import gguf as conversion
from lad_engine.model.weights import open_checkpoint


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LAD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


def leftovers(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if path.suffix != ".lock")


@pytest.mark.parametrize("family,kind", [("smollm2", "Q4_1"), ("llama3", "F32"), ("qwen2", "Q8_0"), ("llama", "F16")])
def test_converted_tensors_are_the_dequantised_ones(tmp_path: Path, family: str, kind: str) -> None:
    exact = write_tiny_gguf(tmp_path / "tiny.gguf", family, kind)
    checkpoint = open_checkpoint(tmp_path / "tiny.gguf")
    tensors = dict(checkpoint.tensors())
    assert tensors.keys() == exact.keys()
    matrix_dtype = {"F32": torch.float32, "F16": torch.float16}.get(kind, torch.bfloat16)
    for name, tensor in tensors.items():
        assert tensor.dtype == (matrix_dtype if tensor.ndim == 2 else torch.float32), name
        assert torch.equal(tensor, exact[name].to(tensor.dtype)), name


def test_converted_facts_and_tokenizer_are_those_of_the_file(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf", "llama3")
    checkpoint = open_checkpoint(tmp_path / "tiny.gguf")
    facts = checkpoint.facts
    assert (facts.family, facts.name, facts.vocab_size, facts.max_positions) == ("llama", "tiny", 320, 512)
    assert (facts.query_heads, facts.kv_heads, facts.head_width, facts.has_tied_head) == (4, 2, 16, False)
    assert (facts.bos_id, facts.eos_ids) == (1, (2, 3))
    assert facts.rope == RopeFacts(500000.0, "llama3", 8.0, 1.0, 4.0, 64)
    tokenizer = Tokenizer.from_file(str(checkpoint.folder / "tokenizer.json"))
    assert len(tokenizer.encode("MASK", add_special_tokens=False).ids) == 1
    assert len(tokenizer.encode("HOLE", add_special_tokens=False).ids) == 2


@pytest.mark.parametrize("family", ["smollm2", "qwen2"])
def test_conversion_equals_the_dequantiser_of_transformers(tmp_path: Path, family: str) -> None:
    pytest.importorskip("accelerate")
    from transformers import AutoModelForCausalLM

    write_tiny_gguf(tmp_path / "tiny.gguf", family, "Q4_1")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="tiny.gguf", dtype=torch.float32).state_dict()
    for name, tensor in open_checkpoint(tmp_path / "tiny.gguf").tensors():
        assert torch.equal(tensor, theirs[name].to(tensor.dtype)), name


def test_a_file_is_converted_once_and_again_when_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tiny.gguf"
    write_tiny_gguf(path, seed=0)
    conversions = []
    original = conversion.convert_gguf
    monkeypatch.setattr(conversion, "convert_gguf", lambda *arguments: (conversions.append(1), original(*arguments)))
    first = open_checkpoint(path)
    assert open_checkpoint(path).facts == first.facts
    assert len(conversions) == 1
    write_tiny_gguf(path, seed=1)
    os.utime(path, ns=(1, 1))
    assert open_checkpoint(path).facts.fingerprint != first.facts.fingerprint
    assert len(conversions) == 2


def test_progress_reports_bytes_up_to_the_total(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf")
    seen = []
    open_checkpoint(tmp_path / "tiny.gguf", progress=lambda label, done, total: seen.append((label, done, total)))
    assert seen[0] == ("reading tiny.gguf", 0, 0)
    assert seen[-1] == ("rebuilding the tokenizer of tiny.gguf", 0, 0)
    done = [entry[1] for entry in seen[1:-1]]
    assert done == sorted(done) and done[-1] == seen[-2][2] > 0


@pytest.mark.parametrize("size", [0, 3, 2000, 60000])
def test_a_cut_file_is_refused_by_name_and_leaves_nothing(tmp_path: Path, cache: Path, size: int) -> None:
    write_tiny_gguf(tmp_path / "whole.gguf")
    (tmp_path / "cut.gguf").write_bytes((tmp_path / "whole.gguf").read_bytes()[:size])
    with pytest.raises(CheckpointError, match=r"cut\.gguf: is .*Download it again"):
        open_checkpoint(tmp_path / "cut.gguf")
    assert leftovers(cache) == []


def test_other_architectures_and_unknown_tensors_are_named(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "other.gguf", "gpt2")
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), np.float32))
    for step in ("write_header_to_file", "write_kv_data_to_file", "write_tensors_to_file", "close"):
        getattr(writer, step)()
    with pytest.raises(CheckpointError, match=r"general\.architecture is 'gpt2', expected one of llama, qwen2"):
        open_checkpoint(tmp_path / "other.gguf")
    assert conversion.hugging_face_name("blk.3.attn_q.bias") == "model.layers.3.self_attn.q_proj.bias"
    assert conversion.hugging_face_name("blk.0.ffn_gate_exps.weight") is None


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf")

    def full(*arguments: object) -> bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch, pytest.raises(DownloadError, match=r"the disk is full .*set LAD_CACHE"):
        patch.setattr(conversion, "_stored_bytes", full)
        open_checkpoint(tmp_path / "tiny.gguf")
    assert leftovers(cache) == []
    assert open_checkpoint(tmp_path / "tiny.gguf").facts.layers == 2
