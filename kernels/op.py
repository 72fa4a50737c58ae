"""The record an op folder declares: what it computes, how else it can be computed, and how to check it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any


@dataclass(frozen=True)
class Op:
    """One op folder.

    package: the folder's `__name__`; reference: the plain PyTorch meaning; backends: names of the `<backend>_kernel.py` files beside
    it; cases: `cases(device, dtype) -> list[dict]` of keyword arguments; bytes_moved: least device-memory traffic of a call;
    is_exact: every backend must equal the reference bit for bit (copies, index ops, random numbers); writes: arguments changed in place;
    shape: `shape(**case) -> (model, size)`, what a measured table (`tile_table.py`) knows a call by, None where there is nothing to choose.
    """

    package: str
    reference: Callable[..., Any]
    backends: tuple[str, ...]
    cases: Callable[..., list[dict]]
    bytes_moved: Callable[..., int]
    is_exact: bool = False
    writes: tuple[str, ...] = ()
    shape: Callable[..., tuple[dict, dict]] | None = None

    @property
    def name(self) -> str:
        """The folder's name, as shown to people and accepted by `--ops`."""
        return self.package.rpartition(".")[2]

    @property
    def function(self) -> str:
        """The name every backend file gives its function; it differs from the folder's where that names a family (random: uniform)."""
        return self.reference.__name__

    def implementation(self, backend: str) -> Callable[..., Any]:
        """Return the function of `backend`, importing its file; ImportError where its compiler or extension is missing."""
        if backend == "reference":
            return self.reference
        if backend not in self.backends:
            raise ValueError(f"{self.name}: backend is {backend!r}, expected one of {', '.join(('reference', *self.backends))}.")
        return getattr(self._module(backend), self.function)

    def configured(self, backend: str, config: Mapping[str, int]) -> Callable[..., Any]:
        """Return the function of `backend` with a measured tile in place of its own formula; an empty `config` is the formula.

        Raises:
            ValueError: the backend has no tiles, or the names are not those of its launch configuration.
        """
        plain = self.implementation(backend)
        if not config:
            return plain
        configured = getattr(self._module(backend), "configured", None)
        if configured is None:
            raise ValueError(f"{self.name}={backend}: config is {dict(config)}, expected none: this backend has no tiles to choose.")
        return configured(config)

    def invariant(self, backend: str) -> Callable[..., Any]:
        """Return the function of `backend` whose tiles never follow the batch: its `invariant`, or the function itself without one."""
        return getattr(self._module(backend), "invariant", self.implementation(backend))

    def _module(self, backend: str) -> ModuleType:
        return importlib.import_module(f"{self.package}.{backend}_kernel")
