"""One process or several: who writes, and how sums are taken over all of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import TrainingError


@dataclass(frozen=True)
class Processes:
    """This process among `count`; `device` is the one a launcher gave it, or None."""

    index: int = 0
    count: int = 1
    device: torch.device | None = None

    @property
    def is_main(self) -> bool:
        return self.index == 0

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all processes, in one message."""
        if self.count == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        torch.distributed.all_reduce(flat)
        offset = 0
        for tensor in tensors:
            tensor.copy_(flat[offset : offset + tensor.numel()].view_as(tensor))
            offset += tensor.numel()


def join_processes(uses_cpu: bool) -> Processes:
    """Join the processes of `accelerate launch` or torchrun, or be alone; `uses_cpu` keeps them off the accelerators.

    Raises:
        TrainingError: launched in several processes without accelerate installed, or they do not find one another.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes()
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise TrainingError("train: several processes were launched, which needs accelerate. Run: pip install accelerate.") from error
    # Without the flag accelerate starts no process group on a machine that has no accelerator.
    wanted = int(os.environ["WORLD_SIZE"])
    try:
        state = PartialState(cpu=uses_cpu)
    except (ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise TrainingError(f"train: WORLD_SIZE is {wanted}, but the processes do not join ({reason}). Use accelerate launch.") from error
    if state.num_processes != wanted:
        raise TrainingError(f"train: accelerate joined {state.num_processes} processes, expected {wanted}. Use accelerate launch.")
    return Processes(state.process_index, state.num_processes, state.device)
