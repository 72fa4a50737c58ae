"""The CUDA C++ compiles for every architecture we promise, and its builder says in one sentence why it could not."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import pytest

from lad_engine.errors import CaptureError
from lad_engine.runtime import decode_loop
from lad_engine.runtime.decode_loop import build_library, compile_command, find_source, read_archs

ROOT = Path(__file__).parents[2]


def nvcc() -> str:
    try:
        return decode_loop.find_nvcc()
    except CaptureError as error:
        pytest.skip(f"no CUDA compiler here: {error}")


@pytest.mark.parametrize("source", sorted((ROOT / "csrc" / "cuda").glob("*.cu")), ids=lambda path: path.name)
def test_cuda_sources_compile_for_sm_80_and_sm_90a(source, tmp_path):
    command = [*compile_command(nvcc(), source, tmp_path / "out.so", ["80", "90a"]), "-Werror=all-warnings"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    library = ctypes.CDLL(str(tmp_path / "out.so"))
    for name in ("lad_loop_create", "lad_loop_launch", "lad_loop_destroy", "lad_error_text"):
        assert hasattr(library, name)


def test_a_built_library_is_found_again_and_not_built_twice(tmp_path, monkeypatch):
    nvcc()
    first = build_library(tmp_path / "extensions", (8, 0))
    monkeypatch.setattr(decode_loop, "_build", lambda *_: pytest.fail("built again"))
    assert build_library(tmp_path / "extensions", (8, 0)).path == first.path
    assert [path.name for path in (tmp_path / "extensions").iterdir()] == [first.path.name]


def test_what_is_missing_is_named_in_one_sentence(tmp_path, monkeypatch):
    nvcc()
    with pytest.raises(CaptureError, match=r"LAD_CUDA_ARCHS is 8.0, this GPU is 9.0. Add it there"):
        build_library(tmp_path, (9, 0), "8.0")
    with pytest.raises(CaptureError, match="'ninety' is no architecture"):
        build_library(tmp_path, (9, 0), "ninety")
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(CaptureError, match=r"cannot be written .* LAD_CACHE"):
        build_library(blocked, (8, 0))
    broken = tmp_path / "decode_loop.cu"
    broken.write_text("int broken( {")
    monkeypatch.setattr(decode_loop, "find_source", lambda: broken)
    with pytest.raises(CaptureError, match="nvcc failed"):
        build_library(tmp_path / "extensions", (8, 0))
    monkeypatch.setattr(decode_loop, "LEAST_TOOLKIT", (99, 0))
    with pytest.raises(CaptureError, match=r"expected 99.0 or newer"):
        build_library(tmp_path / "extensions", (8, 0))
    monkeypatch.setattr(decode_loop.shutil, "which", lambda *_, **__: None)
    with pytest.raises(CaptureError, match="nvcc is missing"):
        build_library(tmp_path / "extensions", (8, 0))


def test_architectures_are_read_as_torch_and_nvcc_write_them():
    assert read_archs("8.0;9.0a, 12.0") == ["80", "90a", "120"]
    assert read_archs("80 90a") == ["80", "90a"]
    assert find_source().name == "decode_loop.cu"
