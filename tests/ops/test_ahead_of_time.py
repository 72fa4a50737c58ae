"""Every Triton kernel compiles for every architecture without a GPU, within its shared memory and registers, on its tensor cores."""

from __future__ import annotations

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
    assert not faults, "\n".join(faults)
