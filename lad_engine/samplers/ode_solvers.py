"""Runge-Kutta steps from a tableau: a fixed grid for the whole batch, or an embedded pair that chooses each sequence's own steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

SAFETY, LARGEST_GROWTH, LARGEST_CUT = 0.9, 10.0, 0.2


class Method(Protocol):
    """Nodes, stages and weights of a method; `schedules.flow_time.Tableau` says what each is."""

    nodes: tuple[float, ...]
    stages: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]
    error: tuple[float, ...]
    order: int


def integrate(
    field: Callable[[int], Callable[[Tensor], Tensor] | None], x: Tensor, method: Method, intervals: Sequence[tuple[float, float]]
) -> Tensor:
    """Integrate `x` over `intervals` (start, length) with fixed steps.

    field(n) is the velocity of the n-th stage overall, or None where it is zero and nothing has to be computed.
    """
    stage = 0
    for _, dt in intervals:
        slopes: list[Tensor | None] = []
        for row in method.stages:
            velocity = field(stage)
            slopes.append(None if velocity is None else velocity(advanced(x, dt, row, slopes)))
            stage += 1
        x = advanced(x, dt, method.weights, slopes)
    return x


def advanced(x: Tensor, dt: float | Tensor, coefficients: Sequence[float], slopes: Sequence[Tensor | None]) -> Tensor:
    """x + dt sum_j c_j k_j; dt is a number or `[B, 1]`, a slope that is None counts as zero."""
    change = None
    for c, slope in zip(coefficients, slopes, strict=False):
        if c and slope is not None:
            change = slope * c if change is None else change.add(slope, alpha=c)
    return x if change is None else x + change * dt


def integrate_adaptively(
    field: Callable[[Tensor, Tensor, tuple[bool, ...] | None], Tensor],
    x: Tensor,
    slope: Tensor,
    method: Method,
    *,
    end: float,
    attempts: int,
    first_step: float,
    tolerance: float,
    reads_flags: bool,
) -> tuple[Tensor, Tensor]:
    """Integrate each row of `x` `[B, Z]` from 0 to `end` with steps of its own, chosen by an embedded pair.

    A step is taken where rms(error / (tol + tol max(|x|, |x'|))) <= 1; the next is min(10, max(0.9 r^(-1/order), 0.2, or 1 after an
    accepted one)) times as long and never passes `end`. The last stage serves as the next first. A row that has not arrived after
    `attempts` goes the rest along its last slope.

    Args:
        field: velocity of (times `[B]`, x, rows that nobody needs or None); zero where the time is 1.
        slope: velocity at 0.
        reads_flags: read on the host which rows have arrived, and stop when all have; False does every attempt, and the same numbers.
    Returns:
        (x, attempts each row took part in `[B]` int64).
    """
    B = x.shape[0]
    t, dt = x.new_zeros(B), x.new_full((B,), first_step)
    taken = torch.zeros(B, dtype=torch.int64, device=x.device)
    for _ in range(attempts):
        is_going = t < end
        unneeded = None
        if reads_flags:
            unneeded = tuple((~is_going).tolist())
            if all(unneeded):
                break
        h = torch.minimum(dt, end - t)
        column = h[:, None]
        slopes: list[Tensor | None] = [slope]
        for node, row in zip(method.nodes[1:], method.stages[1:], strict=True):
            slopes.append(field(t + node * h, advanced(x, column, row, slopes), unneeded))
        there = advanced(x, column, method.weights, slopes)
        error = advanced(torch.zeros_like(x), column, method.error, slopes)
        scale = tolerance + tolerance * torch.maximum(x.abs(), there.abs())
        ratio = (error / scale).square().mean(1).sqrt()
        is_taken = is_going & (ratio <= 1.0)
        # A perfect step has ratio 0, whose power is infinite and is cut to the largest growth.
        growth = (SAFETY * ratio ** (-1.0 / method.order)).clamp(max=LARGEST_GROWTH)
        growth = torch.maximum(growth, torch.where(ratio < 1.0, 1.0, LARGEST_CUT))
        arrives = dt >= end - t
        t = torch.where(is_taken, torch.where(arrives, end, t + h), t)
        dt = torch.where(is_going, h * growth, dt)
        x = torch.where(is_taken[:, None], there, x)
        slope = torch.where(is_taken[:, None], slopes[-1], slope)
        taken += is_going
    return x + (end - t)[:, None] * slope, taken
