"""Several adapters resident beside one base: stacked at fixed addresses, chosen per sequence, swapped under captured steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..contracts import AdapterFacts
from ..errors import AdapterError
from ..model.adapter_rows import BASE, AdapterRows, LowRankStack, with_row_norms
from ..model.projection import Projection
from ..model.transformer import Transformer
from .attach import check_fit
from .low_rank import Adapter
from .preflight import preflight
from .probe import Encoder

# Ranks are padded to this, so that every row of a stack is aligned for the widest loads.
RANK_STEP = 16
# What a batch has one of, so that adapters in one batch must agree on it.
SHARED_FACTS = ("mask_id", "predicts_next_token", "eos_id", "decoding")


@dataclass(frozen=True)
class Resident:
    """An adapter in a slot; version counts what this name has held, from 1."""

    name: str
    slot: int
    version: int
    facts: AdapterFacts


@dataclass(frozen=True)
class Replaced:
    """What a replacement did: version now, and the version a running batch finishes with (None where none uses this name)."""

    version: int
    in_flight: int | None


class AdapterStore:
    """Up to `capacity` adapters of at most `rank` beside a clean base; row -1 of every batch choice is the base itself.

    `rows` is the device buffer of the batch's choice. Storage is allocated here once: `a`, `b`, scales and norms of all slots are
    never moved, so captured steps stay valid through add, remove and replace. A decoder has one store at a time.
    """

    def __init__(
        self,
        transformer: Transformer,
        codec: Encoder,
        *,
        capacity: int,
        rank: int,
        modules: Iterable[str],
        norms: Iterable[str] = (),
        max_rows: int = 256,
        shapes_only: bool = False,
    ) -> None:
        """Allocate the stacks.

        Args:
            rank: the largest there will be. modules, norms: paths of all linear layers and norms that adapters may change.
            max_rows: sequences of the largest batch. shapes_only: see `preflight`.
        Raises:
            AdapterError: a module is unknown or cannot be stacked, or the decoder carries an adapter or 8-bit weights already.
        """
        if capacity < 1 or rank < 1:
            raise AdapterError(f"adapter store: capacity is {capacity} and rank {rank}, expected at least 1 of each.")
        self._transformer, self._codec, self._shapes_only = transformer, codec, shapes_only
        self.capacity, self.rank = capacity, -(-rank // RANK_STEP) * RANK_STEP
        self.rows = AdapterRows(max_rows, transformer.embed.device)
        self._modules, self._norms = frozenset(modules), frozenset(norms)
        self._residents: dict[str, Resident] = {}
        self._versions: dict[str, int] = {}
        self._running: tuple[Resident | None, ...] = ()
        self._base_shift = transformer.head.predicts_next_token
        self._check_decoder()
        self._stacks = self._stack_projections()
        self._gains = {transformer.norm(path): self._stack_norm(transformer.norm(path)) for path in sorted(self._norms)}
        self._plain_ops = transformer.ops, transformer.head.ops
        transformer.adapter_rows = transformer.head.adapter_rows = self.rows
        self.rows.nbytes = self.nbytes
        transformer.ops = with_row_norms(transformer.ops, self._gains, self.rows)
        transformer.head.ops = with_row_norms(transformer.head.ops, self._gains, self.rows)

    @classmethod
    def holding(
        cls, transformer: Transformer, codec: Encoder, adapters: Mapping[str, Adapter], *, capacity: int | None = None, **options: object
    ) -> AdapterStore:
        """Build a store just large enough for the layers, norms and ranks of `adapters`, and add them all.

        capacity: slots, at least one per adapter; None leaves one free, so that any of them can be replaced while a batch runs.
        """
        if not adapters:
            raise AdapterError("adapter store: no adapter is given, expected at least one, which says what layers and ranks to hold.")
        slots = len(adapters) + 1 if capacity is None else capacity
        if slots < len(adapters):
            raise AdapterError(f"adapter store: capacity is {slots}, expected at least {len(adapters)} for {', '.join(adapters)}.")
        rank = max(pair.rank for adapter in adapters.values() for pair in adapter.weights.values())
        modules = {module for adapter in adapters.values() for module in adapter.weights}
        norms = {norm for adapter in adapters.values() for norm in adapter.norms}
        store = cls(transformer, codec, capacity=slots, rank=rank, modules=modules, norms=norms, **options)
        for name, adapter in adapters.items():
            store.add(name, adapter)
        return store

    def add(self, name: str, adapter: Adapter) -> Resident:
        """Check an adapter (preflight) and copy it into a free slot.

        Raises:
            AdapterError: the name is taken, no slot is free, the adapter fails a check, exceeds the store's rank, layers or norms, or
                differs from the resident ones in its mask id, shift or EOS.
        """
        if name in self._residents:
            raise AdapterError(f"adapter {name}: is resident already, expected a new name. Replace it, or remove it first.")
        return self._install(name, self._checked(name, adapter), self._free_slot(name))

    def replace(self, name: str, adapter: Adapter) -> Replaced:
        """Put another adapter under a resident name, whole or not at all; addresses stay.

        A running batch that uses the name finishes with what it began with: the new values then take a free slot.
        Raises:
            AdapterError: as `add`; the name is unknown; or it is in use and no slot is free. The old one stays.
        """
        old = self.get(name)
        adapter = self._checked(name, adapter, replacing=name)
        in_flight = old if any(one is not None and one.slot == old.slot for one in self._running) else None
        new = self._install(name, adapter, old.slot if in_flight is None else self._free_slot(name))
        return Replaced(new.version, None if in_flight is None else in_flight.version)

    def remove(self, name: str) -> None:
        """Free the name's slot; a running batch that uses it finishes with it.

        Raises:
            AdapterError: the name is unknown.
        """
        self.get(name)
        del self._residents[name]
        self._restore_shift()

    def get(self, name: str) -> Resident:
        """Return the adapter of this name; AdapterError lists the resident ones where it is unknown."""
        if name not in self._residents:
            loaded = ", ".join(self._residents) or "none"
            raise AdapterError(
                f"adapter {name!r}: is not loaded, expected one of the loaded ones ({loaded}). Load it, or name one of them."
            )
        return self._residents[name]

    def holds(self, resident: Resident) -> bool:
        """Say whether this version is still what its name stands for."""
        return self._residents.get(resident.name) is resident

    def names(self) -> tuple[str, ...]:
        """Return the resident names, in the order they were added."""
        return tuple(self._residents)

    def residents(self) -> tuple[Resident, ...]:
        """Return the resident adapters of one moment, in the order they were added; any thread may ask."""
        return tuple(self._residents.values())

    def select(self, names: Sequence[str | None]) -> tuple[Resident | None, ...]:
        """Choose the adapter of every sequence of the next batch, None for the base, and return what each will be computed with.

        Raises:
            AdapterError: a name is unknown, or the batch is larger than max_rows.
        """
        if len(names) > len(self.rows.index):
            raise AdapterError(f"adapter store: the batch has {len(names)} sequences, expected at most {len(self.rows.index)} (max_rows).")
        chosen = tuple(None if name is None else self.get(name) for name in names)
        self.rows.put([BASE if one is None else one.slot for one in chosen])
        self._running = chosen
        return chosen

    def point(self, chosen: Sequence[Resident | None]) -> None:
        """Compute the rows of the next step with these, for a server whose rows come and go; it says by `keep` what runs."""
        self.rows.put([BASE if one is None else one.slot for one in chosen])

    def keep(self, running: Sequence[Resident | None]) -> None:
        """Say what requests that run now are computed with: none of it is overwritten when its name is replaced."""
        self._running = tuple(running)
        self._restore_shift()

    def finish(self) -> None:
        """Say that the batch chosen last is over: all rows are the base's, and slots only it used are free."""
        self.rows.put(())
        self._running = ()
        self._restore_shift()

    def close(self) -> None:
        """Take the stacks off the decoder, which then is the base again."""
        for projection in self._stacks:
            projection.stack = None
        transformer = self._transformer
        transformer.adapter_rows = transformer.head.adapter_rows = None
        transformer.ops, transformer.head.ops = self._plain_ops
        transformer.head.predicts_next_token = self._base_shift

    @property
    def nbytes(self) -> int:
        """Device memory of the stacks and norms."""
        stacked = [tensor for stack in self._stacks.values() for tensor in (stack.a, stack.b, stack.scales)]
        return sum(tensor.nbytes for tensor in (*stacked, *self._gains.values(), self.rows.index))

    def _restore_shift(self) -> None:
        """Predict as the base does once no adapter is resident and no batch runs, which finishes as it began."""
        if not self._residents and not self._running:
            self._transformer.head.predicts_next_token = self._base_shift

    def _check_decoder(self) -> None:
        transformer = self._transformer
        for projection in transformer.projections():
            name = next(iter(projection.rows))
            if not projection.is_plain:
                raise AdapterError(f"adapter store: {name} carries an adapter already, expected a clean base. Load it without one.")
            if projection.weight.dtype != transformer.embed.dtype:
                raise AdapterError(
                    f"adapter store: {name} is {projection.weight.dtype}, expected {transformer.embed.dtype}. Use precision auto."
                )
        # Its rows are read by other kernels than those of the layers.
        if "lm_head" in self._modules:
            raise AdapterError("adapter store: lm_head is adapted, expected layers of the decoder. Load this adapter alone, merged.")
        unknown = sorted(self._modules - set(transformer.linear_names()))
        if unknown:
            transformer.projection(unknown[0])

    def _stack_projections(self) -> dict[Projection, LowRankStack]:
        stacks: dict[Projection, LowRankStack] = {}
        for projection in self._transformer.projections():
            parts = tuple(rows for module, rows in projection.rows.items() if module in self._modules)
            if parts:
                out, inside = projection.weight.shape
                zeros = projection.weight.new_zeros
                a, b = zeros(self.capacity, len(parts), self.rank, inside), zeros(self.capacity, out, self.rank)
                scales = torch.zeros(self.capacity, dtype=torch.float32, device=a.device)
                stacks[projection] = projection.stack = LowRankStack(a, b, scales, parts, self.rows)
        return stacks

    def _stack_norm(self, weight: nn.Parameter) -> Tensor:
        return weight.detach().expand(self.capacity + 1, -1).clone()

    def _free_slot(self, name: str) -> int:
        taken = {one.slot for one in self._residents.values()} | {one.slot for one in self._running if one is not None}
        for slot in range(self.capacity):
            if slot not in taken:
                return slot
        raise AdapterError(
            f"adapter {name}: all {self.capacity} slots are taken ({', '.join(self._residents)}), expected a free one. Remove one, "
            "wait for the running batch, or construct the store larger."
        )

    def _checked(self, name: str, adapter: Adapter, replacing: str | None = None) -> Adapter:
        """Return the adapter as preflight completes it; refuse what the stacks cannot hold or the resident ones disagree with."""
        check_fit(self._transformer, adapter)
        outside = sorted(adapter.weights.keys() - self._modules) + sorted(adapter.norms.keys() - self._norms)
        if outside:
            raise AdapterError(
                f"adapter {name}: it changes {outside[0]}, expected only layers and norms this store was made for. "
                "Name all adapters when the engine is loaded."
            )
        for module, pair in adapter.weights.items():
            if pair.rank > self.rank:
                raise AdapterError(f"adapter {name}: {module} has rank {pair.rank}, expected at most {self.rank} (the store's rank).")
        with self.rows.bypassed():
            adapter = preflight(self._transformer, self._codec, adapter, shapes_only=self._shapes_only).adapter
        others = [one for one in self._residents.values() if one.name != replacing]
        for other in others + [one for one in self._running if one is not None]:
            for fact in SHARED_FACTS:
                mine, theirs = getattr(adapter.facts, fact), getattr(other.facts, fact)
                if mine != theirs:
                    raise AdapterError(
                        f"adapter {name}: {fact} is {mine}, expected {theirs} as of {other.name}, since a batch has one. "
                        "Load them in engines of their own."
                    )
        return adapter

    @torch.no_grad()
    def _install(self, name: str, adapter: Adapter, slot: int) -> Resident:
        for stack in self._stacks.values():
            for tensor in (stack.a, stack.b, stack.scales):
                tensor[slot].zero_()
        for module, pair in adapter.weights.items():
            projection, start, stop = self._transformer.projection(module)
            stack = self._stacks[projection]
            fused = [adapter.weights[path].scale for path in projection.rows if path in adapter.weights]
            # A weight has one scale per slot, its first layer's; where the layers fused in it differ, the others' ratio goes into B.
            ratio = pair.scale / fused[0] if fused[0] else 1.0
            stack.scales[slot] = fused[0]
            stack.a[slot, stack.parts.index((start, stop)), : pair.rank].copy_(pair.a)
            stack.b[slot, start:stop, : pair.rank].copy_(pair.b if ratio == 1.0 else pair.b * ratio)
        for path in self._norms:
            weight = self._transformer.norm(path)
            self._gains[weight][slot].copy_(adapter.norms.get(path, weight))
        version = self._versions.get(name, 0) + 1
        resident = Resident(name, slot, version, adapter.facts)
        self._versions[name], self._residents[name] = version, resident
        self._transformer.head.predicts_next_token = adapter.facts.predicts_next_token
        return resident
