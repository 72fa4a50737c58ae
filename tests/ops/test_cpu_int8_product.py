"""What parity cannot see of our int8 product: every remainder of a tile, rows shared among threads, the ends of the range, refusals."""

from __future__ import annotations

import pytest
import torch

cpu = pytest.importorskip("lad_engine._cpu", reason="the C++ extension is not built here")
if not cpu.multiplies_bytes():
    pytest.skip("this processor has no sums of byte products; the library's are used", allow_module_level=True)


def product(x, weight, threads=1, bias=None, dtype=torch.float32, x_scale=None, weight_scale=None):
    N, width = x.shape[0], weight.shape[0]
    x_scale = torch.ones(N) if x_scale is None else x_scale
    weight_scale = torch.ones(width) if weight_scale is None else weight_scale
    y = torch.full((N, width), torch.nan, dtype=dtype)
    cpu.quantised_linear(x, x_scale, weight, weight_scale, bias, y, threads)
    return y


def numbers(*shape):
    return torch.randint(-128, 128, shape, dtype=torch.int8)


@pytest.mark.parametrize("D", (1, 3, 4, 63, 64, 65, 130))
@pytest.mark.parametrize("width", (1, 15, 16, 64, 65, 130))
def test_every_remainder_of_a_tile_is_exact(width, D):
    weight = numbers(width, D)
    for N in (1, 2, 3, 4, 5, 6, 7, 13):
        x = numbers(N, D)
        assert torch.equal(product(x, weight), (x.double() @ weight.double().t()).float())


def test_threads_that_share_the_rows_give_the_bits_of_one():
    # Few panels of columns and many rows: two threads take parts of the rows.
    x, weight, bias = numbers(301, 100), numbers(70, 100), torch.randn(70)
    scales = {"x_scale": torch.rand(301), "weight_scale": torch.rand(70)}
    for dtype in (torch.float32, torch.bfloat16):
        alone = product(x, weight, 1, bias, dtype, **scales)
        assert torch.equal(alone, product(x, weight, 2, bias, dtype, **scales))
        assert torch.equal(alone, product(x, weight, 7, bias, dtype, **scales))
        sums = (x.double() @ weight.double().t()).int()
        wanted = torch.empty_like(alone)
        cpu.dequantise(sums, scales["x_scale"], scales["weight_scale"], bias, wanted, 1)
        assert torch.equal(alone, wanted)


def test_the_ends_of_the_range_do_not_saturate():
    for low, high in ((-128, -128), (-128, 127), (127, 127)):
        x, weight = torch.full((7, 4096), low, dtype=torch.int8), torch.full((65, 4096), high, dtype=torch.int8)
        assert torch.equal(product(x, weight), torch.full((7, 65), float(low * high * 4096)))


def test_rows_may_be_strided_on_both_sides():
    x, weight = numbers(20, 200)[:, 3:103], numbers(140, 150)[::2, 7:107]
    y = torch.zeros(20, 100)
    cpu.quantised_linear(x, torch.ones(20), weight, torch.ones(70), None, y[:, 5:75], 1)
    assert torch.equal(y[:, 5:75], (x.double() @ weight.double().t()).float())
    assert not y[:, :5].any() and not y[:, 75:].any()


def test_nothing_to_do_is_nothing_done():
    assert product(numbers(0, 8), numbers(5, 8)).shape == (0, 5)
    assert product(numbers(3, 8), numbers(0, 8)).shape == (3, 0)


def test_what_does_not_fit_is_refused_by_name():
    with pytest.raises(ValueError, match=r"quantised_linear: x is 65537 wide, expected at most 65536\."):
        product(numbers(1, 65537), numbers(1, 65537))
    with pytest.raises(ValueError, match=r"quantised_linear: weight is \(5, 9\), expected \(5, 8\)\."):
        product(numbers(1, 8), numbers(5, 9))
    with pytest.raises(ValueError, match=r"quantised_linear: x is torch.float32, expected torch.int8\."):
        product(torch.ones(1, 8), numbers(5, 8))
