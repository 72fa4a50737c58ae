"""Which positions count and how much, and cross-entropy that never holds more than one chunk of logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

# 512 rows of a 49k vocabulary are 100 MB of fp32 logits; fewer rows make the head's GEMM slower on CPU.
ROWS_PER_CHUNK = 512


def position_weights(
    kind: str,
    clean: Tensor,
    noised: Tensor,
    answer_start: Tensor,
    first_eos: Tensor,
    level: Tensor,
    mask_id: int,
    kept_weight: float,
    eos_pad_weight: float,
) -> tuple[Tensor, float | None]:
    """Return the loss weight of every position `[B, T]` fp32 and the fixed divisor, or None where the sum of weights divides.

    all:        1 everywhere (LAD, section 2.3: prompt copy, answer and EOS padding).
    answer:     1 on the answer, eos_pad_weight on EOS after the first.
    corrupted:  1 on changed answer positions, kept_weight on unchanged ones; EOS after the first times eos_pad_weight.
    mask_only:  1 / (t A) on masked positions, divided by B: the bound of masked diffusion (LLaDA), A the answer region's length.

    clean, noised: `[B, T]` int64; answer_start, first_eos: `[B]`; level: `[B]` fp32 (t).
    """
    columns = torch.arange(clean.shape[1], device=clean.device)[None]
    is_answer = columns >= answer_start[:, None]
    if kind == "all":
        return torch.ones_like(clean, dtype=torch.float32), None
    if kind == "mask_only":
        region = (clean.shape[1] - answer_start)[:, None]
        return (is_answer & (noised == mask_id)) / (level[:, None] * region), float(clean.shape[0])
    weights = is_answer.float()
    if kind == "corrupted":
        weights = weights * torch.where(noised != clean, 1.0, kept_weight)
    return torch.where(columns > first_eos[:, None], weights * eos_pad_weight, weights), None


class Taught(NamedTuple):
    """What a teacher expects: its rows `[N, D]`, what maps them to fp32 logits, and its share `[N]` of each target."""

    rows: Tensor
    logits_of: Callable[[Tensor], Tensor]
    share: Tensor


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Weighted sum of cross-entropies whose gradient is taken chunk by chunk in the forward pass."""

    @staticmethod
    def forward(ctx, logits_of, targets, weights, smoothing, taught, rows, *parameters):
        gradients = [torch.zeros_like(rows), *(torch.zeros_like(p, dtype=torch.float32) for p in parameters)]
        total = torch.zeros((), dtype=torch.float32, device=rows.device)
        for start in range(0, rows.shape[0], ROWS_PER_CHUNK):
            part = slice(start, start + ROWS_PER_CHUNK)
            with torch.enable_grad():
                chunk = rows[part].detach().requires_grad_()
                logits = logits_of(chunk)
            expected = None if taught is None else (taught.logits_of(taught.rows[part]).softmax(1), taught.share[part])
            loss, slope = _loss_and_slope(logits.detach(), targets[part], weights[part], smoothing, expected)
            total += loss
            chunk_gradient, *parameter_gradients = torch.autograd.grad(logits, [chunk, *parameters], slope)
            gradients[0][part] = chunk_gradient
            for sum_, gradient in zip(gradients[1:], parameter_gradients, strict=True):
                sum_ += gradient
        ctx.save_for_backward(*gradients)
        ctx.dtypes = [rows.dtype, *(p.dtype for p in parameters)]
        return total

    @staticmethod
    def backward(ctx, gradient):
        scaled = [(saved * gradient).to(dtype) for saved, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)]
        return None, None, None, None, None, *scaled


def _loss_and_slope(
    logits: Tensor, targets: Tensor, weights: Tensor, smoothing: float, expected: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor]:
    """Return the weighted loss `[]` and its gradient `[N, V]`, written over `logits`; expected: distributions `[N, V]` and shares `[N]`."""
    log_total = logits.logsumexp(1)
    hit = logits.gather(1, targets[:, None])[:, 0]
    # How much of the target is the token itself.
    own = torch.full_like(hit, 1.0 - smoothing)
    loss = log_total.clone()
    if expected is not None:
        distribution, share = expected[0].mul_(own[:, None] * expected[1][:, None]), expected[1]
        loss -= (distribution * logits).sum(1)
        own = own * (1.0 - share)
    loss -= own * hit
    if smoothing:
        loss -= smoothing * logits.mean(1)
    # Overwriting is safe: the linear layer behind the logits needs its input and weight for the backward pass, not its output.
    slope = logits.sub_(log_total[:, None]).exp_()
    if smoothing:
        slope -= smoothing / logits.shape[1]
    if expected is not None:
        slope -= distribution
    slope.scatter_add_(1, targets[:, None], -own[:, None])
    return (loss * weights).sum(), slope.mul_(weights[:, None])


def chunked_cross_entropy(
    logits_of: Callable[[Tensor], Tensor],
    rows: Tensor,
    targets: Tensor,
    weights: Tensor,
    smoothing: float = 0.0,
    parameters: Sequence[nn.Parameter] = (),
    taught: Taught | None = None,
) -> Tensor:
    """Return sum_n weight_n * CE(logits_of(rows)_n, target_n), one chunk of logits in memory at a time.

    CE = -(1 - e) ((1 - s) log p[target] + s sum_v q[v] log p[v]) - e mean_v log p[v], with label smoothing e and the share s of a
    teacher's q, 0 without one.

    Args:
        logits_of: maps `[n, D]` to fp32 `[n, V]` logits; its last operation must not need its own output for the backward pass.
        rows: `[N, D]`; targets: `[N]` int64; weights: `[N]` fp32. parameters: trainable ones inside logits_of.
    Returns:
        `[]` fp32, differentiable in rows and parameters.
    """
    return _ChunkedCrossEntropy.apply(logits_of, targets, weights, smoothing, taught, rows, *parameters)
