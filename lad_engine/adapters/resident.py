"""The engine's side of an adapter store: adapters by name and file, and which of them each prompt of a batch asks for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ..contracts import AdapterFacts
from ..errors import AdapterError
from ..model.transformer import Transformer
from ..profiles import profile_beside
from .low_rank import Adapter
from .probe import Encoder
from .reader import read_adapter
from .store import AdapterStore, Replaced, Resident

Names = str | None | Sequence[str | None]
# What each row of a batch is computed with, None the base; None for all where an engine holds no adapters by name.
Chosen = Sequence[Resident | None] | None


class Incoming(NamedTuple):
    """An adapter that was read and is not installed yet, and the profile that a search left beside it (None: none)."""

    adapter: Adapter
    tuned: Mapping[str, Any] | None


def read_incoming(path: str | Path) -> Incoming:
    """Read an adapter and what lies beside it.

    Raises:
        AdapterError: it cannot be read. ConfigError: the file beside it is no profile.
    """
    adapter = read_adapter(path)
    return Incoming(adapter, profile_beside(adapter.path))


class ResidentAdapters:
    """Named adapters beside one base; `paths` is what they are read from, see `AdapterStore.holding`."""

    def __init__(self, transformer: Transformer, codec: Encoder, paths: Mapping[str, str | Path], shapes_only: bool = False) -> None:
        incoming = {name: read_incoming(path) for name, path in paths.items()}
        adapters = {name: one.adapter for name, one in incoming.items()}
        self.store = AdapterStore.holding(transformer, codec, adapters, shapes_only=shapes_only)
        # Not the weights, which are in the store.
        self._places = {name: (one.adapter.path, one.tuned) for name, one in incoming.items()}
        # What the resident ones agree on, kept when the last of them leaves.
        self.shared: AdapterFacts = self.store.get(next(iter(paths))).facts
        self._is_running = False

    def load(self, name: str, path: str | Path) -> Resident | Replaced:
        """Read an adapter and add it, or put it in the place of the one of this name.

        Raises:
            AdapterError, ConfigError: it or the profile beside it cannot be read, or it does not fit; what was there stays.
        """
        return self.install(name, read_incoming(path))

    def install(self, name: str, incoming: Incoming) -> Resident | Replaced:
        """Add what was read, or put it in the place of the adapter of this name; AdapterError where it does not fit."""
        done = (self.store.replace if name in self.store.names() else self.store.add)(name, incoming.adapter)
        self.shared = self.store.get(name).facts
        self._places[name] = incoming.adapter.path, incoming.tuned
        return done

    def remove(self, name: str) -> None:
        """Forget an adapter; AdapterError lists the loaded ones where the name is unknown."""
        self.store.remove(name)
        del self._places[name]

    def path(self, name: str) -> Path | None:
        """Return where an adapter was read from, None where it is not loaded."""
        return self._places.get(name, (None, None))[0]

    def profile(self, name: str) -> tuple[AdapterFacts, Mapping[str, Any] | None]:
        """Return an adapter's facts and the profile that lay beside it when it was loaded; AdapterError where the name is unknown."""
        # Looked up first: another thread may take the name away, and then the store says so.
        tuned = self._places.get(name, (None, None))[1]
        return self.store.get(name).facts, tuned

    def facts(self) -> dict[str, AdapterFacts]:
        """Return the facts of every resident adapter by its name."""
        return {one.name: one.facts for one in self.store.residents()}

    @contextmanager
    def chosen(self, names: Sequence[str | None]) -> Iterator[tuple[Resident | None, ...]]:
        """Within the block the batch is computed with these adapters, None for the base.

        Raises:
            AdapterError: a name is unknown, or another batch is in its block: there is one buffer of choices.
        """
        if self._is_running:
            raise AdapterError("adapters: another batch of this engine is running, expected one at a time. Read its stream to the end.")
        self._is_running = True
        try:
            yield self.store.select(names)
        finally:
            self.store.finish()
            self._is_running = False


def each_name(names: Names, count: int) -> list[str | None]:
    """Return one name per prompt; AdapterError where a list of them is not as long as the prompts."""
    if names is None or isinstance(names, str):
        return [names] * count
    if len(names) != count:
        raise AdapterError(f"adapters: {len(names)} given for {count} prompts, expected one or as many as prompts.")
    return list(names)
