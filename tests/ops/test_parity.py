"""Every op folder holds to its record, and every backend file to its reference."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch

from lad_engine import kernels
from lad_engine.ops import OP_NAMES, load_op
from parity import assert_parity

FOLDERS = sorted(path.parent.name for path in Path(kernels.__file__).parent.glob("*/reference.py"))
PAIRS = [(path.parent.name, path.name.removesuffix("_kernel.py")) for path in sorted(Path(kernels.__file__).parent.glob("*/*_kernel.py"))]
FASTEST = "cuda" if torch.cuda.is_available() else "cpu"
DEVICE_OF = {"cpu": "cpu", "cuda": "cuda", "triton": FASTEST, "cublas": FASTEST, "sdpa": FASTEST, "library": FASTEST}
# The Triton interpreter does bf16 arithmetic on raw bits.
DTYPES = (torch.float32, torch.bfloat16)


def test_every_folder_is_in_the_op_table():
    assert sorted(OP_NAMES) == FOLDERS


@pytest.mark.parametrize("name", FOLDERS)
def test_a_record_lists_the_backend_files_beside_it(name):
    op = load_op(name)
    assert op.name == name
    assert sorted(op.backends) == sorted(backend for folder, backend in PAIRS if folder == name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FOLDERS)
def test_cases_run_and_count_their_bytes(name, dtype):
    op = load_op(name)
    cases = op.cases("cpu", dtype)
    assert len(cases) >= 3
    for case in cases:
        op.reference(**case)
        assert op.bytes_moved(**case) > 0


@pytest.mark.parametrize("name", FOLDERS)
def test_a_reference_does_not_change_its_inputs(name):
    op = load_op(name)
    for case in op.cases("cpu", torch.float32):
        assert_parity(f"{name} twice", op.reference, op.reference, case, exact=True, writes=op.writes)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("name", "backend"), PAIRS)
def test_a_kernel_matches_its_reference(name, backend, dtype):
    op, device = load_op(name), DEVICE_OF[backend]
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    if backend in ("triton", "cublas") and device == "cpu" and dtype == torch.bfloat16:
        pytest.skip("the Triton interpreter is tested in fp32")
    kernel = _implementation(op, backend)
    assert list(inspect.signature(kernel).parameters) == list(inspect.signature(op.reference).parameters)
    for case in op.cases(device, dtype):
        assert_parity(f"{name}={backend}", kernel, op.reference, case, exact=op.is_exact, writes=op.writes)


def _implementation(op, backend):
    try:
        return op.implementation(backend)
    except ImportError as error:
        pytest.skip(f"{op.name}={backend} cannot be imported here: {error}")


def test_an_unknown_backend_is_refused_by_name():
    with pytest.raises(ValueError, match=r"renoise: backend is 'metal', expected one of reference, cpu, triton\."):
        load_op("renoise").implementation("metal")
