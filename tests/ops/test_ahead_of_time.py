"""Every Triton kernel compiles for every architecture without a GPU, within its shared memory and registers, on its tensor cores."""

from __future__ import annotations

import ast
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lad_engine import kernels

pytest.importorskip("triton", reason="Triton is only published for Linux")

OPS = sorted(path.parent.name for path in Path(kernels.__file__).parent.glob("*/triton_kernel.py"))
# What one block may use of the architecture's shared memory (CUDA programming guide, technical specifications).
SHARED_LIMIT_BYTES = {80: 166_912, 90: 232_448, 100: 232_448}

KERNEL_FILES = sorted(Path(kernels.__file__).parent.glob("*/*_kernel.py"))


def launched(path: Path) -> set[str]:
    """Return the names of the kernels that a file launches, as their own files define them: `name[grid](...)`."""
    module = importlib.import_module(f"lad_engine.kernels.{path.parent.name}.{path.stem}")
    calls = (node.func for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call))
    names = {call.value.id for call in calls if isinstance(call, ast.Subscript) and isinstance(call.value, ast.Name)}
    return {getattr(module, name).fn.__name__ for name in names if hasattr(getattr(module, name, None), "fn")}


def test_every_kernel_that_is_launched_is_compiled_ahead_of_time():
    listed = {
        (compilation.kernel.fn.__name__, architecture)
        for op in OPS
        for compilation in importlib.import_module(f"lad_engine.kernels.{op}.triton_kernel").ahead_of_time()
        for architecture in compilation.architectures
    }
    every = set().union(*(launched(path) for path in KERNEL_FILES if path.stem in ("triton_kernel", "cublas_kernel")))
    assert len(every) >= len(OPS)
    assert every - {name for name, _ in listed} == set()
    assert {(name, architecture) for name in every for architecture in SHARED_LIMIT_BYTES} - listed == set()


@pytest.fixture(scope="module")
def reports(request):
    """Compile what the selected tests ask for, in one program: importing torch costs more than a small kernel."""
    chosen = sorted(
        {item.callspec.params["op"] for item in request.session.items if item.path == request.path and hasattr(item, "callspec")}
    )
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    program = Path(__file__).with_name("compile_ahead.py")
    done = subprocess.run([sys.executable, str(program), *chosen], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.mark.parametrize("op", OPS)
def test_a_kernel_compiles_within_every_architectures_limits(op, reports):
    mine = [report for report in reports if report["op"] == op]
    assert mine
    faults = []
    for report in mine:
        where = f"sm_{report['architecture']} {report['label']}"
        if "error" in report:
            faults.append(f"{where}: {report['error']}")
            continue
        if report["shared_bytes"] > SHARED_LIMIT_BYTES[report["architecture"]]:
            faults.append(f"{where}: {report['shared_bytes']} bytes of shared memory")
        if report.get("stack_bytes"):
            faults.append(f"{where}: {report['stack_bytes']} bytes of stack, {report['registers']} registers")
        if report["is_matrix"] and not report["has_matrix_instruction"]:
            faults.append(f"{where}: no tensor core instruction")
        # One load of a single value keeps the operands from being copied to shared memory ahead of their product.
        if report["is_matrix"] and report["has_aligned_rows"] and not report["copies_ahead"]:
            faults.append(f"{where}: operands pass through registers")
    assert not faults, "\n".join(faults)
