"""The waiting line: clients take turns, and each client's requests keep their order."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class FairQueue(Generic[Item]):
    """Items by client; `peek` is the oldest of the client whose turn it is, and `pop` ends that turn."""

    def __init__(self) -> None:
        self._lines: OrderedDict[str, deque[Item]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def __iter__(self) -> Iterator[Item]:
        for line in self._lines.values():
            yield from line

    def push(self, client: str, item: Item) -> None:
        """Queue an item behind its client's others; a new client comes last."""
        self._lines.setdefault(client, deque()).append(item)

    def peek(self) -> Item | None:
        """Return who is next without taking it out."""
        return next(iter(self._lines.values()))[0] if self._lines else None

    def pop(self) -> Item:
        """Take out who is next; its client goes to the end of the round."""
        client, line = next(iter(self._lines.items()))
        item = line.popleft()
        del self._lines[client]
        if line:
            self._lines[client] = line
        return item

    def take(self, leaves: Callable[[Item], bool]) -> list[Item]:
        """Take out every item for which `leaves` holds; turns stay."""
        taken: list[Item] = []
        for client, line in list(self._lines.items()):
            out = [item for item in line if leaves(item)]
            if out:
                taken += out
                kept = deque(item for item in line if not leaves(item))
                if kept:
                    self._lines[client] = kept
                else:
                    del self._lines[client]
        return taken
