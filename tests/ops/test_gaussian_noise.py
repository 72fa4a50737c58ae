"""Normal numbers of the Philox contract: NumPy, torch and Triton agree, they are normal, and they belong to nothing but their key."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lad_engine.kernels.gaussian_noise import OP
from lad_engine.kernels.random.numpy_twin import normal_numpy
from lad_engine.kernels.random.reference import NORMAL_TOLERANCE, SIMPLEX_NOISE, normal, philox4x32
from lad_engine.kernels.soft_embedding.reference import soft_embedding

# False alarms of the tests below: at most 1e-6 each, by the normal and chi-square tails they cite.
SIGMAS = 4.9


def _drawn(rows: int = 200, count: int = 1000, step: int = 3) -> torch.Tensor:
    ids = torch.arange(rows)
    return normal(ids * 17 + 1, ids % 64, torch.tensor(step), SIMPLEX_NOISE, count).double()


def test_the_numpy_twin_agrees():
    for case in OP.cases("cpu", torch.float32):
        twin = normal_numpy(*(case[name].numpy() for name in ("seeds", "positions", "steps")), case["purpose"], case["count"])
        assert np.abs(twin - OP.reference(**case).numpy()).max() <= NORMAL_TOLERANCE


def test_the_triton_kernel_agrees_within_the_stated_tolerance():
    pytest.importorskip("triton", reason="Triton is only published for Linux")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for case in OP.cases(device, torch.float32):
        assert (OP.implementation("triton")(**case) - OP.reference(**case)).abs().max() <= NORMAL_TOLERANCE


def test_four_numbers_come_from_one_call_of_the_generator():
    key = torch.tensor([2**40 + 5])
    words = philox4x32((torch.tensor([7]), torch.tensor([11]), SIMPLEX_NOISE, torch.tensor([2])), key)
    u = [((int(word) >> 9) + 0.5) * 2.0**-23 for word in words]
    wanted = [math.sqrt(-2 * math.log(u[i])) * turn(2 * math.pi * u[i + 1]) for i in (0, 2) for turn in (math.cos, math.sin)]
    drawn = normal(key, torch.tensor([7]), torch.tensor([11]), SIMPLEX_NOISE, 12)[0, 8:]
    assert drawn.tolist() == pytest.approx(wanted, abs=NORMAL_TOLERANCE)


def test_draws_are_normal():
    z = _drawn().flatten()
    n = z.numel()
    # Standard errors of the first four moments of n normal numbers.
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float((z**power).mean()) - mean) < SIGMAS * math.sqrt(variance / n)
    edges = torch.special.ndtri(torch.arange(1, 100, dtype=torch.float64) / 100)
    counts = torch.bincount(torch.bucketize(z, edges), minlength=100).double()
    chi = float(((counts - n / 100) ** 2 / (n / 100)).sum())
    # 99 degrees of freedom: above 180.8 with probability 1e-6.
    assert chi < 180.8


def test_neighbours_rows_and_steps_are_unrelated():
    z, later = _drawn(), _drawn(step=4)
    n = z.numel()
    for other in (z.roll(1, 1), z.roll(2, 1), z.roll(1, 0), later):
        assert abs(float((z * other).mean())) < SIGMAS / math.sqrt(n)


def test_a_number_does_not_depend_on_how_many_are_drawn_or_on_other_rows():
    alone = normal(torch.tensor([5]), torch.tensor([9]), torch.tensor([2]), SIMPLEX_NOISE, 10)
    batch = normal(torch.tensor([1, 5]), torch.tensor([0, 9]), torch.tensor([7, 2]), SIMPLEX_NOISE, 501)
    assert torch.equal(alone[0], batch[1, :10])


def test_the_drawn_noise_and_the_same_noise_supplied_embed_alike():
    torch.manual_seed(3)
    table, tokens = torch.randn(300, 16), torch.tensor([4, -1, 299])
    key = (torch.tensor([1, 2, 3]), torch.tensor([0, 5, 6]), torch.tensor([9, 9, 1]))
    case = (table, tokens, torch.full((3,), 6.0), torch.full((3,), 2.0), *key, SIMPLEX_NOISE, torch.randn(3, 300))
    assert torch.equal(soft_embedding(*case), soft_embedding(*case, normal(*key, SIMPLEX_NOISE, 300)))


def test_soft_embedding_is_the_plain_formula():
    torch.manual_seed(4)
    V, k, share = 50, 5.0, 0.3
    table, z, logits, token = torch.randn(V, 8), torch.randn(1, V), torch.randn(1, V), torch.tensor([7])
    corner = torch.full((1, V), -k)
    corner[0, 7] = k
    simplex = math.sqrt(share) * corner + math.sqrt(1 - share) * k * z
    wanted = (simplex.softmax(1) + logits.softmax(1)) / 2 @ table
    one = torch.tensor([1])
    scale = (torch.tensor([2 * k * math.sqrt(share)]), torch.tensor([k * math.sqrt(1 - share)]))
    assert torch.allclose(soft_embedding(table, token, *scale, one, one, one, SIMPLEX_NOISE, logits, z), wanted, atol=1e-5)


def test_a_wrong_shape_is_named():
    one = torch.tensor([1])
    with pytest.raises(ValueError, match=r"soft_embedding: shift is \(2,\), expected \(1,\) to match tokens\."):
        soft_embedding(torch.zeros(3, 2), one, torch.zeros(2), torch.zeros(1), one, one, one, SIMPLEX_NOISE, None)
    with pytest.raises(ValueError, match=r"gaussian_noise: steps is \(\), expected \(1,\)"):
        OP.reference(one, one, torch.tensor(1), SIMPLEX_NOISE, 4)
