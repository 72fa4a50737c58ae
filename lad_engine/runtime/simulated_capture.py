"""A stand-in for CUDA graphs on a CPU: a replay calls the step again and checks what a graph would have taken for granted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .arena import Arena, tensor_paths


class SimulatedCapture:
    """Implements `graphs.Backend` without a device: copies happen at once, streams and events are not there."""

    is_simulated = True

    def empty(self, nbytes: int) -> Tensor:
        """Return a block for an arena."""
        return torch.empty(nbytes, dtype=torch.uint8)

    def pinned(self, nbytes: int) -> Tensor:
        """Return host memory that copies go through."""
        return torch.empty(nbytes, dtype=torch.uint8)

    def before_staging(self, arena: Arena) -> None:
        """Nothing is in flight on a CPU."""

    def upload(self, arena: Arena, staging: Tensor, block: Tensor) -> None:
        """Copy a request into its block."""
        block.copy_(staging)

    def download(self, source: Tensor, target: Tensor, between: Tensor | None = None) -> Callable[[], None]:
        """Copy to the host; the function that is returned waits for it."""
        target.copy_(source)
        return lambda: None

    def capture(self, step: Callable[[], None], state: Any) -> SimulatedGraph:
        """Record what one call of `step` does to `state`; later replays must do the same."""
        return SimulatedGraph(step, state)

    def loop(self, graph: SimulatedGraph, state: Any) -> Callable[[], None]:
        """Return what the single-graph loop does in one launch: steps until its condition fails."""

        def launch() -> None:
            while True:
                graph.replay()
                steps, floor = state.bounds.tolist()
                if int(state.step) >= steps or int((~state.done).sum()) <= floor:
                    return

        return launch

    def synchronize(self) -> None:
        """Nothing is in flight on a CPU."""

    def free_bytes(self) -> int | None:
        """Return None: a CPU's memory is not planned."""


class SimulatedGraph:
    """A step and what it did when it was recorded: the addresses of the buffers, and the number and bytes of its allocations."""

    def __init__(self, step: Callable[[], None], state: Any) -> None:
        self._step, self._state = step, state
        # As with a graph, what the first call alone does (tables built, kernels compiled) is not part of the recording.
        step()
        self.addresses, self.allocations = self._addresses(), self._run()
        self.replays = 0

    def replay(self) -> None:
        """Run the step again; it is our own promise that buffers stay where they are and allocations stay the same."""
        allocations = self._run()
        assert self._addresses() == self.addresses, "captured step: a buffer moved between two replays."
        assert allocations == self.allocations, f"captured step: allocations (number, bytes) are {allocations}, were {self.allocations}."
        self.replays += 1

    def _run(self) -> tuple[int, int]:
        with _Allocations() as seen:
            self._step()
        return seen.count, seen.nbytes

    def _addresses(self) -> dict[str, int]:
        return {path: attrgetter(path)(self._state).data_ptr() for path in tensor_paths(self._state)}


class _Allocations(TorchDispatchMode):
    """Counts results that own memory none of their operation's arguments had."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.nbytes = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        given = {tensor.untyped_storage()._cdata for tensor in _tensors((*args, *(kwargs or {}).values()))}
        out = func(*args, **(kwargs or {}))
        for tensor in _tensors((out,)):
            if tensor.untyped_storage()._cdata not in given:
                self.count += 1
                self.nbytes += tensor.untyped_storage().nbytes()
        return out


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    # An operation's arguments are tensors and lists of them; torch's own walk over any nesting takes longer than the step.
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)
