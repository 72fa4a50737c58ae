"""What is installed: both trees under one name, nothing else at the top level, built without torch and without a compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ("csrc", "kernels", "lad_engine", "pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "CONTRIBUTING.md")
IGNORED = shutil.ignore_patterns("__pycache__", "*.so", "*.pyd", "*.egg-info")


def _run(command: list[str], cwd: Path, **variables: str) -> subprocess.CompletedProcess:
    """Run `command` with `variables` added to the environment; its output is in the failure message."""
    environment = {**os.environ, **variables}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}\n{done.stderr}"
    return done


def _build(kind: str, source: Path, out: Path, **variables: str) -> tuple[Path, str]:
    """Call the build backend's hook as an installer would; torch is made unimportable meanwhile."""
    blocked = out / "without_torch"
    blocked.mkdir(parents=True, exist_ok=True)
    (blocked / "torch.py").write_text('raise ImportError("torch is not part of the build environment")\n')
    script = f"import sys; from setuptools import build_meta; sys.stderr.write('built:' + build_meta.build_{kind}(sys.argv[1]))"
    done = _run([sys.executable, "-c", script, str(out)], source, PYTHONPATH=str(blocked), **variables)
    name = done.stderr.rsplit("built:", 1)[1].strip()
    return out / name, done.stdout + done.stderr


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """A copy of what a build reads, so that no build output of the working tree gets in and none is left behind."""
    copy = tmp_path_factory.mktemp("clone")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=IGNORED)
        else:
            shutil.copy(source, copy / name)
    return copy


@pytest.fixture(scope="module")
def sdist(tree, tmp_path_factory) -> Path:
    return _build("sdist", tree, tmp_path_factory.mktemp("sdist"))[0]


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory) -> tuple[Path, str]:
    """The wheel built from the source distribution with a compiler that always fails, and what the build printed."""
    folder = tmp_path_factory.mktemp("unpacked_sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    broken = "false" if os.name == "posix" else "no-such-compiler"
    variables = {"CC": broken, "CXX": broken, "LAD_SKIP_EXT": ""}
    return _build("wheel", next(folder.iterdir()), tmp_path_factory.mktemp("wheel"), **variables)


@pytest.fixture(scope="module")
def unpacked(wheel, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel[0]) as archive:
        archive.extractall(folder)
    return folder


def test_the_source_distribution_holds_what_a_build_reads(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    for folder in ("csrc", "kernels", "lad_engine"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and path.suffix in {".py", ".cpp", ".h", ".cu", ".json", ".safetensors"}:
                assert path.relative_to(ROOT).as_posix() in names


def test_the_wheel_holds_both_trees_and_the_assets(unpacked):
    for path in (ROOT / "lad_engine").rglob("*"):
        is_asset = path.is_file() and "assets" in path.parts
        if (path.suffix == ".py" or is_asset) and "__pycache__" not in path.parts:
            assert (unpacked / path.relative_to(ROOT)).is_file(), f"{path.relative_to(ROOT)} is not in the wheel"
    for path in (ROOT / "kernels").rglob("*.py"):
        assert (unpacked / "lad_engine" / path.relative_to(ROOT)).is_file(), f"{path.relative_to(ROOT)} is not in the wheel"
    # Compiled where it runs.
    assert (unpacked / "lad_engine" / "csrc" / "cuda" / "decode_loop.cu").is_file()


def test_the_wheel_adds_one_name_to_the_top_level(unpacked):
    assert [path.name for path in unpacked.iterdir() if not path.name.endswith(".dist-info")] == ["lad_engine"]


def test_the_metadata_names_what_is_needed_and_nothing_that_must_be_compiled(unpacked, tree):
    text = next(unpacked.glob("*.dist-info/METADATA")).read_text(encoding="utf-8")
    metadata = Parser().parsestr(text)
    required = {entry.split(">")[0].split(";")[0].strip() for entry in metadata.get_all("Requires-Dist") if "extra ==" not in entry}
    assert {"torch", "transformers", "safetensors", "numpy", "gguf", "rich"} <= required
    assert not {name for name in required if "llama" in name}
    assert metadata["License-Expression"] == "Apache-2.0"
    assert {"train", "test", "serve", "demo", "eval", "scale"} <= set(metadata.get_all("Provides-Extra"))
    assert f'__version__ = "{metadata["Version"]}"' in (tree / "lad_engine" / "__init__.py").read_text(encoding="utf-8")


# Hides an editable install of the working tree, which would answer for modules that are missing in the copy under test.
ALONE = "import sys; sys.meta_path[:] = [finder for finder in sys.meta_path if 'editable' not in finder.__module__.lower()]\n"


def test_a_failing_compiler_leaves_the_extension_out_and_says_so(wheel, unpacked):
    assert "lad_engine._cpu" in wheel[1]
    assert not list(unpacked.glob("lad_engine/_cpu*"))


def test_without_the_extension_the_installed_package_runs_and_says_so_once(unpacked, tmp_path):
    script = ALONE + (
        "import lad_engine, lad_engine.kernels, lad_engine.ops as ops\n"
        "assert lad_engine.kernels.__file__.startswith(lad_engine.__path__[0]), lad_engine.kernels.__file__\n"
        "print(lad_engine.__file__); print(ops.select_ops().chosen['renoise']); ops.select_ops()\n"
    )
    done = _run([sys.executable, "-c", script], tmp_path, PYTHONPATH=str(unpacked), LAD_OPS="")
    place, backend = done.stdout.split()
    assert Path(place).is_relative_to(unpacked)
    assert backend == "reference"
    assert done.stderr.count("extension is not built") == 1
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_transformers_and_a_clone_import_side_by_side(tree):
    """`python -m lad_engine.<verb>` in a clone puts its root on the path, where transformers looks for a package named kernels."""
    script = ALONE + (
        "sys.path.insert(0, '')\n"
        "import transformers; from transformers import LlamaForCausalLM\n"
        "import lad_engine, lad_engine.kernels.op\n"
        "print(lad_engine.__file__); print(lad_engine.kernels.__file__)\n"
    )
    done = _run([sys.executable, "-c", script], tree)
    package, kernels = map(Path, done.stdout.split())
    assert package.resolve() == (tree / "lad_engine" / "__init__.py").resolve()
    assert kernels.resolve() == (tree / "kernels" / "__init__.py").resolve()
