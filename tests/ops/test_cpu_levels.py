"""The C++ ops on every instruction path and for any number of threads: parity with the reference, and the same bits on all of them."""

from __future__ import annotations

import pytest
import torch

from lad_engine.ops import OP_NAMES, load_op
from parity import assert_parity

cpu = pytest.importorskip("lad_engine._cpu", reason="the C++ extension is not built here")

LEVELS = {"baseline": 0, "avx2": 1, "avx512": 2, "vnni": 3}
NAMES = [name for name in OP_NAMES if "cpu" in load_op(name).backends]
# Their products are the library's, which promises the same bits for no two numbers of threads.
WITH_PRODUCTS = {"lm_head", "packed_attention", "gate_up", "lora_linear", "soft_embedding"}
# test_parity.py compares these at the best level, and the test of equal bits below gives the others.
SLOW_REFERENCES = {*WITH_PRODUCTS - {"packed_attention"}, "quantised_linear"}
# Without fused products the library multiplies, in its own order.
FUSES_PRODUCTS = {"packed_attention"}


@pytest.fixture(params=LEVELS)
def level(request):
    """Run a test at one level; a processor without it skips the test."""
    wanted = LEVELS[request.param]
    try:
        if cpu.force_level(wanted) != wanted:
            pytest.skip(f"this processor or this build has no {request.param}")
        yield wanted
    finally:
        cpu.force_level(-1)


@pytest.fixture
def threads():
    """Set the number of threads, and put it back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def outputs(name, case):
    result = load_op(name).implementation("cpu")(**case)
    return result if isinstance(result, tuple) else (result,)


def bits(tensor):
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def test_the_level_in_use_is_the_best_unless_a_lower_one_is_forced():
    best = cpu.force_level(-1)
    assert cpu.level() == best
    assert [cpu.force_level(wanted) for wanted in LEVELS.values()] == [min(wanted, best) for wanted in LEVELS.values()]
    assert cpu.force_level(-1) == best


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("name", [name for name in NAMES if name not in SLOW_REFERENCES])
def test_an_op_matches_its_reference_at_every_level(name, dtype, level):
    op = load_op(name)
    for case in op.cases("cpu", dtype):
        assert_parity(f"{name} at level {level}", op.implementation("cpu"), op.reference, case, exact=op.is_exact, writes=op.writes)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("name", [name for name in NAMES if not load_op(name).writes])
def test_every_level_gives_the_same_bits(name, dtype):
    for case in load_op(name).cases("cpu", dtype):
        found = []
        for wanted in LEVELS.values():
            cpu.force_level(wanted)
            if name not in FUSES_PRODUCTS or cpu.attends():
                found.append(outputs(name, case))
        cpu.force_level(-1)
        for other in found[1:]:
            assert [bits(one) for one in found[0]] == [bits(one) for one in other]


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("name", [name for name in NAMES if not load_op(name).writes and name not in WITH_PRODUCTS - FUSES_PRODUCTS])
def test_one_thread_and_two_give_the_same_bits(name, dtype, threads):
    for case in load_op(name).cases("cpu", dtype):
        threads(1)
        alone = outputs(name, case)
        threads(2)
        assert [bits(one) for one in alone] == [bits(one) for one in outputs(name, case)]


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_one_thread_and_two_choose_the_same_tokens_from_real_products(dtype, threads):
    numbers = torch.Generator().manual_seed(5)
    V, D, N = 5003, 64, 37
    column = {"temperature": 0.8, "top_p": 0.95}
    case = {
        "rows": torch.randn(N, D, generator=numbers).to(dtype),
        "weight": torch.randn(V, D, generator=numbers).to(dtype),
        "uniforms": torch.rand(N, generator=numbers).clamp(1e-6, 1 - 1e-6),
        **{name: torch.full((N,), value) for name, value in column.items()},
        "top_k": torch.full((N,), 20),
        "drop_crossing": torch.arange(N) % 2 == 0,
        "full_confidence": torch.arange(N) % 3 == 0,
        "bias_ids": torch.tensor([3]),
        "bias_values": torch.full((N, 1), -torch.inf),
        "max_top_k": 20,
        "samples_all": False,
    }
    threads(1)
    token, confidence = outputs("lm_head", case)
    threads(2)
    again, confidence_again = outputs("lm_head", case)
    assert torch.equal(token, again)
    torch.testing.assert_close(confidence, confidence_again)
    assert len(set(token.tolist())) > 10
