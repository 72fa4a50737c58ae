"""How long each op takes on each backend that runs here: `pytest tests/ops/test_op_speed.py --benchmark-enable` compares commits.

Without that flag every case runs once and only has to return; no test fails on a time.
"""

from __future__ import annotations

import pytest
import torch

from lad_engine.ops import OP_NAMES, load_op

# Interpreted Triton kernels say nothing about speed; on a GPU `bench/` times them.
HOST_BACKENDS = ("reference", "cpu", "sdpa")
PAIRS = [(name, backend) for name in OP_NAMES for backend in HOST_BACKENDS if backend in ("reference", *load_op(name).backends)]


@pytest.mark.parametrize(("name", "backend"), PAIRS)
def test_the_largest_case_of_an_op(benchmark, name: str, backend: str):
    op = load_op(name)
    case = max(op.cases("cpu", torch.float32), key=lambda case: op.bytes_moved(**case))
    try:
        function = op.implementation(backend)
    except ImportError:
        pytest.skip(f"{backend} is not built here")
    benchmark.extra_info.update(bytes_moved=op.bytes_moved(**case), threads=torch.get_num_threads())
    assert benchmark(lambda: function(**case)) is not None or op.writes
