"""Fails whatever a captured step must not do: read a tensor on the host, or make a shape that depends on data."""

from __future__ import annotations

import contextlib

import torch
from torch.utils._python_dispatch import TorchDispatchMode

FORBIDDEN_OPS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "bincount", "equal.default", "repeat_interleave.Tensor")
HOST_READS = ("item", "tolist", "numpy", "nonzero", "cpu", "__bool__", "__int__", "__float__", "__index__")


class StepGuard(TorchDispatchMode):
    """Counts the tensor operations it sees, so that growth between steps shows."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func)
        if any(part in name for part in FORBIDDEN_OPS):
            raise AssertionError(f"step: {name} reads data on the host or has a shape that depends on it.")
        if "index.Tensor" in name and any(index is not None and index.dtype == torch.bool for index in args[1]):
            raise AssertionError("step: a boolean index has a shape that depends on data.")
        self.calls += 1
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def guarded():
    """Run the block under a StepGuard with the tensor methods that read on the host made to fail."""
    saved = {name: getattr(torch.Tensor, name) for name in HOST_READS}

    def refuse(name):
        def read(self, *args, **kwargs):
            raise AssertionError(f"step: Tensor.{name} reads on the host.")

        return read

    try:
        for name in HOST_READS:
            setattr(torch.Tensor, name, refuse(name))
        with StepGuard() as guard:
            yield guard
    finally:
        for name, method in saved.items():
            setattr(torch.Tensor, name, method)
