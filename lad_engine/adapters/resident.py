"""The engine's side of an adapter store: adapters by name and file, and which of them each prompt of a batch asks for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..contracts import AdapterFacts
from ..errors import AdapterError
from ..model.transformer import Transformer
from .probe import Encoder
from .reader import read_adapter
from .store import AdapterStore, Replaced, Resident

Names = str | None | Sequence[str | None]
# What each row of a batch is computed with, None the base; None for all where an engine holds no adapters by name.
Chosen = Sequence[Resident | None] | None


class ResidentAdapters:
    """Named adapters beside one base; `paths` is what they are read from, see `AdapterStore.holding`."""

    def __init__(self, transformer: Transformer, codec: Encoder, paths: Mapping[str, str | Path], shapes_only: bool = False) -> None:
        adapters = {name: read_adapter(path) for name, path in paths.items()}
        self.store = AdapterStore.holding(transformer, codec, adapters, shapes_only=shapes_only)
        # What the resident ones agree on, kept when the last of them leaves.
        self.shared: AdapterFacts = self.store.get(next(iter(paths))).facts
        self._is_running = False

    def load(self, name: str, path: str | Path) -> Resident | Replaced:
        """Read an adapter and add it, or put it in the place of the one of this name.

        Raises:
            AdapterError: it cannot be read or does not fit; what was there stays.
        """
        adapter = read_adapter(path)
        done = self.store.replace(name, adapter) if name in self.store.names() else self.store.add(name, adapter)
        self.shared = self.store.get(name).facts
        return done

    def facts(self) -> dict[str, AdapterFacts]:
        """Return the facts of every resident adapter by its name."""
        return {name: self.store.get(name).facts for name in self.store.names()}

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
