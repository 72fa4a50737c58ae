"""Loss weights, the chunked cross-entropy, and the hand-written backward passes against autograd's."""

from __future__ import annotations

import pytest
import torch

from lad_engine.ops import select_ops
from lad_engine.training import losses
from lad_engine.training.gradients import differentiable
from lad_engine.training.losses import Taught, chunked_cross_entropy, position_weights


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_chunked_cross_entropy_equals_the_plain_one_with_its_gradients(smoothing, monkeypatch):
    monkeypatch.setattr(losses, "ROWS_PER_CHUNK", 4)
    rows, weight = torch.randn(11, 6), torch.nn.Parameter(torch.randn(17, 6))
    targets, weights = torch.randint(0, 17, (11,)), torch.rand(11)
    weights[3] = 0.0
    got_rows, want_rows = rows.clone().requires_grad_(), rows.clone().requires_grad_()
    got = chunked_cross_entropy(lambda x: x @ weight.T, got_rows, targets, weights, smoothing, [weight])
    (got * 2.5).backward()
    got_weight, weight.grad = weight.grad, None
    each = torch.nn.functional.cross_entropy(want_rows @ weight.T, targets, reduction="none", label_smoothing=smoothing)
    want = (each * weights).sum()
    (want * 2.5).backward()
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(got_rows.grad, want_rows.grad)
    torch.testing.assert_close(got_weight, weight.grad)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_chunked_cross_entropy_towards_a_teacher_equals_the_plain_one_with_its_gradients(smoothing, monkeypatch):
    monkeypatch.setattr(losses, "ROWS_PER_CHUNK", 4)
    rows, weight, base = torch.randn(11, 6), torch.randn(17, 6), torch.randn(17, 6)
    targets, weights, share, taught_rows = torch.randint(0, 17, (11,)), torch.rand(11), torch.rand(11), torch.randn(11, 6)
    share[2], share[5] = 0.0, 1.0
    got_rows, want_rows = rows.clone().requires_grad_(), rows.clone().requires_grad_()
    taught = Taught(taught_rows, lambda x: x @ base.T, share)
    got = chunked_cross_entropy(lambda x: x @ weight.T, got_rows, targets, weights, smoothing, taught=taught)
    got.backward()
    hard = torch.nn.functional.one_hot(targets, 17).float()
    mixed = (1 - share[:, None]) * hard + share[:, None] * (taught_rows @ base.T).softmax(1)
    want = (torch.nn.functional.cross_entropy(want_rows @ weight.T, mixed, reduction="none", label_smoothing=smoothing) * weights).sum()
    want.backward()
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(got_rows.grad, want_rows.grad)


def test_chunked_cross_entropy_of_no_rows_is_zero():
    rows = torch.zeros(0, 6, requires_grad=True)
    loss = chunked_cross_entropy(lambda x: x @ torch.ones(6, 5), rows, torch.zeros(0, dtype=torch.int64), torch.zeros(0))
    loss.backward()
    assert loss.item() == 0.0


def test_each_loss_counts_its_positions():
    clean = torch.tensor([[10, 11, 12, 13, 2, 2, 2]])
    noised = torch.tensor([[10, 11, 3, 13, 2, 3, 2]])
    start, first_eos, level = torch.tensor([2]), torch.tensor([4]), torch.tensor([0.5])

    def weights(kind, kept=0.25, pad=0.1):
        found, divisor = position_weights(kind, clean, noised, start, first_eos, level, 3, kept, pad)
        return pytest.approx(found[0].tolist()), divisor

    assert weights("all") == ([1.0] * 7, None)
    assert weights("answer") == ([0, 0, 1, 1, 1, 0.1, 0.1], None)
    assert weights("corrupted") == ([0, 0, 1, 0.25, 0.25, 0.1, 0.025], None)
    assert weights("mask_only") == ([0, 0, 1 / (0.5 * 5), 0, 0, 1 / (0.5 * 5), 0], 1.0)


def _compare(first, second, tensors, needs):
    results = []
    for function in (first, second):
        inputs = [t.clone().requires_grad_(need) for t, need in zip(tensors, needs, strict=True)]
        outputs = function(*inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        generator = torch.Generator().manual_seed(1)
        total = sum((out * torch.randn(out.shape, generator=generator)).sum() for out in outputs)
        total.backward()
        results.append([*(out.detach() for out in outputs), *(t.grad for t in inputs if t.requires_grad)])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_hand_written_backward_passes_equal_autograd():
    plain = select_ops("reference")
    ours = differentiable(plain)
    _compare(ours.add_rmsnorm, plain.add_rmsnorm, [torch.randn(3, 5, 64), torch.randn(3, 5, 64), torch.randn(64)], [True, True, False])
    _compare(ours.add_rmsnorm, plain.add_rmsnorm, [torch.randn(5, 64), torch.randn(5, 64), torch.randn(64)], [True, True, True])
    _compare(lambda x, w: ours.add_rmsnorm(x, None, w)[0], lambda x, w: plain.add_rmsnorm(x, None, w)[0],
             [torch.randn(5, 64), torch.randn(64)], [True, False])  # fmt: skip
    _compare(ours.rotary, plain.rotary, [torch.randn(2, 5, 3, 8), torch.randn(5, 4), torch.randn(5, 4)], [True, False, False])
    _compare(ours.swiglu, plain.swiglu, [torch.randn(2, 5, 16)], [True])

    def linear(ops):
        return lambda x, weight, bias, a1, b1, a2, b2: ops.lora_linear(x, weight, bias, [(a2, b2, 2.0, 10, 16), (a1, b1, 0.5, 0, 7)])

    shapes = [(2, 5, 12), (20, 12), (20,), (3, 12), (7, 3), (4, 12), (6, 4)]
    _compare(linear(ours), linear(plain), [torch.randn(shape) for shape in shapes], [True, False, False, True, True, True, True])
