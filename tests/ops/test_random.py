"""The random numbers are Philox4x32-10, the same from every language, keyed by nothing but seed, position, step and purpose."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lad_engine.kernels.random import OP, reference
from lad_engine.kernels.random.numpy_twin import philox4x32_numpy, uniform_numpy
from lad_engine.kernels.random.reference import CORRUPT_MASK, RENOISE, SAMPLE, philox4x32, uniform

# Known answers published with Random123 (Salmon et al. 2011): counter, key (low word, high word), output.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF, 0xFFFFFFFF), "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0), "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def _signed(low: int, high: int) -> int:
    key = high << 32 | low
    return key - 2**64 if key >= 2**63 else key


@pytest.mark.parametrize(("counter", "key", "wanted"), KNOWN)
def test_philox_gives_the_published_answers(counter, key, wanted):
    words = philox4x32(counter, torch.tensor([_signed(*key)]))
    assert " ".join(f"{int(word):08x}" for word in words) == wanted
    words = philox4x32_numpy(counter, np.array([_signed(*key)]))
    assert " ".join(f"{int(word[0]):08x}" for word in words) == wanted


def test_the_numpy_twin_draws_the_same_bits():
    for case in OP.cases("cpu", torch.float32):
        twin = uniform_numpy(case["seeds"].numpy(), case["positions"].numpy(), case["step"].numpy(), case["purpose"])
        assert twin.dtype == np.float32
        assert np.array_equal(twin, uniform(**case).numpy())


def test_a_draw_is_strictly_between_zero_and_one_at_both_ends():
    words = torch.tensor([0, 2**32 - 1])
    u = ((words >> 9).float() + 0.5) * 2.0**-23
    assert 0 < u[0] < 1e-7
    assert 1 - 1e-6 < u[1] < 1


def test_draws_are_uniform():
    u = uniform(torch.arange(20), torch.arange(5000), torch.tensor(1), SAMPLE).double().flatten()
    assert 0 < u.min() and u.max() < 1
    # Standard errors at n = 100,000: mean 0.0009, variance 0.0002; chi-square with 99 degrees of freedom has sd 14.
    assert abs(float(u.mean()) - 0.5) < 0.004
    assert abs(float(u.var()) - 1 / 12) < 0.001
    counts = torch.histc(u, bins=100, min=0, max=1)
    assert abs(float(((counts - 1000) ** 2 / 1000).sum()) - 99) < 70


def test_each_key_part_gives_unrelated_numbers():
    positions = torch.arange(4000)

    def draw(seed: int, step: int, purpose: int) -> torch.Tensor:
        return uniform(torch.tensor([seed]), positions, torch.tensor(step), purpose)[0].double()

    base = draw(7, 3, SAMPLE)
    for other in (draw(8, 3, SAMPLE), draw(7 + 2**32, 3, SAMPLE), draw(7, 4, SAMPLE), draw(7, 3, RENOISE), base.roll(1)):
        assert abs(float(torch.corrcoef(torch.stack([base, other]))[0, 1])) < 0.06


def test_a_row_does_not_depend_on_its_batch_mates_or_on_the_other_positions():
    alone = uniform(torch.tensor([42]), torch.arange(8), torch.tensor(2), SAMPLE)
    batch = uniform(torch.tensor([1, 42, 5]), torch.arange(100), torch.tensor(2), SAMPLE)
    assert torch.equal(alone[0], batch[1, :8])


def test_purposes_are_distinct():
    others = ("ROUNDS", "MULTIPLIERS", "KEY_STEPS", "WORD")
    purposes = [value for name, value in vars(reference).items() if name.isupper() and name not in others]
    assert CORRUPT_MASK in purposes
    assert len(purposes) == len(set(purposes)) >= 11


def test_a_wrong_argument_is_named():
    seeds, step = torch.tensor([1]), torch.tensor(0)
    with pytest.raises(ValueError, match=r"uniform: positions is 1-d torch\.int32, expected 1-d torch\.int64\."):
        uniform(seeds, torch.arange(3, dtype=torch.int32), step, SAMPLE)
    with pytest.raises(ValueError, match=r"uniform: step is \(2,\)"):
        uniform(seeds, torch.arange(3), torch.stack([step, step]), SAMPLE)
