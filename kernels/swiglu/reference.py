"""The gated activation of the MLP, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def swiglu(gate_up: Tensor) -> Tensor:
    """Multiply the SiLU of the gate half with the up half (Shazeer 2020, equation 6).

    y = silu(g) * u, [g | u] = gate_up; silu in the input's dtype, as transformers computes it.

    Args:
        gate_up: `[..., 2F]`.
    Returns:
        `[..., F]`, dtype of `gate_up`.
    Raises:
        ValueError: the last axis is odd.
    """
    if gate_up.shape[-1] % 2:
        raise ValueError(f"swiglu: the last axis of gate_up is {gate_up.shape[-1]}, expected an even width (gate and up halves).")
    gate, up = gate_up.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up
