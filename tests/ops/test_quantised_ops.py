"""What parity cannot see of the 8-bit ops: every rounding of e4m3, pieces of a large product, refusals."""

from __future__ import annotations

import pytest
import torch

from lad_engine.kernels.quantise_rows.reference import LIMITS, quantise_rows
from lad_engine.kernels.quantised_linear import library_kernel
from lad_engine.kernels.quantised_linear.reference import quantised_linear
from lad_engine.kernels.weight_only_linear import library_kernel as weight_only_library
from lad_engine.kernels.weight_only_linear.reference import weight_only_linear

triton_kernel = None
try:
    from lad_engine.kernels.quantise_rows import triton_kernel
except ImportError:
    triton_kernel = None


@pytest.mark.skipif(triton_kernel is None, reason="Triton is only published for Linux")
def test_every_e4m3_number_and_every_tie_between_two_rounds_as_torch_casts(device):
    codes = torch.arange(0, 127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    ties = (codes[1:] + codes[:-1]) / 2
    values = torch.cat((codes, ties, torch.nextafter(ties, codes[1:]), torch.nextafter(ties, codes[:-1])))
    # The largest value is 448, the limit itself.
    x = torch.cat((values, -values))[None].to(device)
    for one, other in zip(triton_kernel.quantise_rows(x, torch.float8_e4m3fn), quantise_rows(x, torch.float8_e4m3fn), strict=True):
        assert torch.equal(one.view(torch.uint8), other.view(torch.uint8))
    got = triton_kernel.quantise_rows(x, torch.float8_e4m3fn)[0].float()
    if quantise_rows(x, torch.float8_e4m3fn)[1].item() == 1.0:
        assert torch.equal(got[0, :127].cpu(), codes)


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
def test_a_row_reaches_the_limit_of_its_type_and_comes_back_within_half_a_step(dtype):
    x = torch.randn(50, 123) * torch.logspace(-12, 12, 50)[:, None]
    q, scale = quantise_rows(x, dtype)
    assert torch.equal(q.float().abs().amax(1), torch.full((50,), LIMITS[dtype]))
    error = (q.double() * scale[:, None].double() - x.double()).abs()
    allowed = scale[:, None].double() / 2 if dtype == torch.int8 else x.double().abs() / 16 + scale[:, None].double() * 2.0**-10
    # The scale itself is rounded twice.
    assert bool((error <= allowed + x.double().abs() * 2.0**-22).all())
    zero, its_scale = quantise_rows(torch.zeros(1, 9), dtype)
    assert not zero.float().any() and 0 < float(its_scale) < 1e-18


def test_a_large_product_is_the_same_in_pieces(monkeypatch):
    x, x_scale = quantise_rows(torch.randn(9, 64), torch.int8)
    weight, weight_scale = quantise_rows(torch.randn(2500, 64), torch.int8)
    bias = torch.randn(2500)
    whole = library_kernel.quantised_linear(x, x_scale, weight, weight_scale, bias, torch.float32)
    rows = torch.randn(9, 64)
    wide = weight_only_library.weight_only_linear(rows, weight, weight_scale, bias)
    monkeypatch.setattr(library_kernel, "MOST_VALUES", 100)
    monkeypatch.setattr(weight_only_library, "MOST_VALUES", 64 * 700)
    assert torch.equal(library_kernel.quantised_linear(x, x_scale, weight, weight_scale, bias, torch.float32), whole)
    torch.testing.assert_close(weight_only_library.weight_only_linear(rows, weight, weight_scale, bias), wide, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("rows", [20, 96, 101])
def test_a_gpus_product_in_pieces_of_rows_is_the_whole_one(monkeypatch, rows):
    x, x_scale = quantise_rows(torch.randn(rows, 60), torch.int8)
    weight, weight_scale = quantise_rows(torch.randn(44, 60), torch.int8)
    # Without a bias every value is two products, which round alike however many are made at once.
    wanted = quantised_linear(x, x_scale, weight, weight_scale, None, torch.bfloat16)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    whole = library_kernel.quantised_linear(x, x_scale, weight, weight_scale, None, torch.bfloat16)
    # Widths and rows are padded to what the GPU's library takes; the last piece has 5 rows of 101.
    monkeypatch.setattr(library_kernel, "MOST_CUDA_VALUES", 44 * 33)
    pieces = library_kernel.quantised_linear(x, x_scale, weight, weight_scale, None, torch.bfloat16)
    assert torch.equal(whole, wanted) and torch.equal(pieces, whole)


def test_int8_rows_have_the_same_bits_in_any_batch():
    x, x_scale = quantise_rows(torch.randn(70, 576), torch.int8)
    weight, weight_scale = quantise_rows(torch.randn(96, 576), torch.int8)
    together = library_kernel.quantised_linear(x, x_scale, weight, weight_scale, None, torch.float32)
    for row in (0, 33, 69):
        alone = library_kernel.quantised_linear(x[row : row + 1], x_scale[row : row + 1], weight, weight_scale, None, torch.float32)
        assert torch.equal(alone[0], together[row])


def test_weight_only_tiles_can_be_kept_from_following_the_batch(device):
    kernel = pytest.importorskip("lad_engine.kernels.weight_only_linear.triton_kernel")
    weight, scale = quantise_rows(torch.randn(40, 64, device=device), torch.int8)
    x = torch.randn(70, 64, device=device)
    together = kernel.invariant(x, weight, scale)
    torch.testing.assert_close(together, kernel.weight_only_linear(x, weight, scale), rtol=1e-5, atol=1e-4)
    for start, stop in ((0, 1), (33, 40)):
        assert torch.equal(kernel.invariant(x[start:stop], weight, scale), together[start:stop])


def test_half_precision_rows_do_not_overflow_before_the_scale():
    weight, weight_scale = quantise_rows(torch.ones(3, 512) * 1e-3, torch.int8)
    x = torch.full((2, 512), 30.0, dtype=torch.float16)
    got = weight_only_library.weight_only_linear(x, weight, weight_scale)
    assert torch.isfinite(got).all() and float((got - 15.36).abs().max()) < 0.05


def test_operands_that_do_not_belong_together_are_refused():
    x, x_scale = quantise_rows(torch.ones(2, 8), torch.int8)
    weight, weight_scale = quantise_rows(torch.ones(3, 8), torch.float8_e4m3fn)
    for function in (quantised_linear, library_kernel.quantised_linear):
        with pytest.raises(ValueError, match=r"x is torch\.int8 \(2, 8\), expected torch\.float8_e4m3fn"):
            function(x, x_scale, weight, weight_scale, None, torch.float32)
        with pytest.raises(ValueError, match="expected one per row"):
            function(x, x_scale[:1], x, x_scale, None, torch.float32)
    with pytest.raises(ValueError, match="expected 8 bits"):
        weight_only_linear(torch.ones(2, 8), torch.ones(3, 8), weight_scale)
    with pytest.raises(ValueError, match=r"dtype is torch\.int16, expected torch\.int8"):
        quantise_rows(torch.ones(2, 8), torch.int16)
