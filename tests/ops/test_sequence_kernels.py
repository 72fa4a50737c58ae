"""What parity cannot see of the Triton kernels that work on whole sequences: ties, pieces, limits, launch sizes."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="Triton is only published for Linux")

from lad_engine.kernels.random import triton_kernel as random_kernel
from lad_engine.kernels.random.reference import RENOISE, uniform
from lad_engine.kernels.renoise import triton_kernel as renoise_kernel
from lad_engine.kernels.structured_noise import OP as STRUCTURED_NOISE
from lad_engine.kernels.structured_noise import triton_kernel as structured_noise_kernel

MASK = 16


def test_of_two_positions_with_one_number_the_lower_is_drawn(device):
    # Seeds are searched for two positions that drew the same number: the only way for equal weights to tie.
    u = uniform(torch.arange(300), torch.arange(1024), torch.tensor(0), RENOISE)
    values, order = u.sort(dim=1, stable=True, descending=True)
    rows, ranks = (values[:, 1:] == values[:, :-1]).nonzero(as_tuple=True)
    seeds, counts = rows[:4], ranks[:4] + 1
    B = len(seeds)
    assert B
    tensors = (torch.full((B, 1024), 7), torch.ones(B, 1024, dtype=torch.bool), torch.ones(B, 1024), counts, seeds, torch.tensor(0))
    out = renoise_kernel.renoise(*(tensor.to(device) for tensor in tensors), MASK).cpu()
    for row, tied in enumerate(order[rows[:4][:, None], ranks[:4][:, None] + torch.arange(2)].tolist()):
        assert (out[row, min(tied)], out[row, max(tied)]) == (MASK, 7)
        assert int((out[row] == MASK).sum()) == counts[row]


def test_a_row_beyond_the_limit_of_renoise_is_refused(device):
    R = renoise_kernel.MAX_POSITIONS + 1
    tokens, one = torch.zeros(1, R, dtype=torch.int64, device=device), torch.ones(1, dtype=torch.int64, device=device)
    with pytest.raises(ValueError, match=r"renoise: tokens is \(1, 8193\), expected at most 8192 positions"):
        renoise_kernel.renoise(tokens, tokens > 0, tokens.float(), one, one, one[0], MASK)


def test_noise_does_not_see_where_a_piece_ends(device):
    case = max(STRUCTURED_NOISE.cases(device, torch.float32), key=lambda case: case["ids"].numel())
    whole = STRUCTURED_NOISE.reference(**case)
    # Transposed storage and another number of rows per piece.
    strided = {**case, "ids": case["ids"].t().contiguous().t()}
    for got, wanted in zip(structured_noise_kernel.structured_noise(**strided), whole, strict=True):
        assert torch.equal(got, wanted)
    part = {name: value[3:5] if name in ("ids", "answer_start", "lengths", "seeds") else value for name, value in case.items()}
    for got, wanted in zip(structured_noise_kernel.structured_noise(**part), whole, strict=True):
        assert torch.equal(got, wanted[3:5])


def test_an_answer_longer_than_a_piece_is_one_answer(device):
    T = structured_noise_kernel.MAX_BLOCK + 100
    ids = torch.randint(20, 1000, (1, T), device=device)
    tensors = (torch.tensor([3], device=device), torch.tensor([T - 2], device=device), torch.tensor([5], device=device))
    call = (ids, *tensors, torch.tensor(2, device=device), MASK, "mixed")
    for got, wanted in zip(structured_noise_kernel.structured_noise(*call), STRUCTURED_NOISE.reference(*call), strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("kernel", [random_kernel, renoise_kernel, structured_noise_kernel])
def test_a_launch_is_a_power_of_two_with_at_most_the_registers_of_a_block(kernel):
    for size in (1, 2, 31, 123, 256, 1000, 4096, 8192):
        config = kernel.launch_config(size)
        block = next(value for name, value in config.items() if name.startswith("BLOCK"))
        assert block & (block - 1) == 0
        assert 1 <= config["num_warps"] <= 16
        assert block <= config["num_warps"] * 32 * 16
