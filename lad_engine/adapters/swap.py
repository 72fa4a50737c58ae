"""Exchange the adapter inside a decoder's weights: the storage stays, so a captured step goes on with the new one."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from ..errors import AdapterError
from ..model.transformer import Transformer
from .low_rank import Adapter


class AdapterSlot:
    """The merged adapter of one decoder, None for the base alone; `swap` puts another one in its place.

    What an adapter changed is kept as the base has it, in host memory and the decoder's dtype: the size of the adapted weights (for q
    and v of Llama-3.1-8B 1.3 GB), from the first swap on. A weight merged twice from these has the same bits both times.

    tensors: reads the base's checkpoint again, as (name, tensor) pairs; called once, at the first swap away from an adapter.
    """

    def __init__(self, transformer: Transformer, adapter: Adapter | None, tensors: Callable[[], Iterable[tuple[str, Tensor]]]) -> None:
        self.adapter = adapter
        self._transformer, self._tensors = transformer, tensors
        self._base: dict[str, Tensor] = {}

    def check(self, adapter: Adapter | None) -> None:
        """Refuse what cannot be merged into storage that is there; nothing is touched.

        Raises:
            AdapterError: the weights are quantised, the decoder carries an unmerged adapter, or the new one adapts a head that shares
                the embedding's weight.
        """
        if not all(projection.is_plain for projection in self._transformer.projections()):
            raise AdapterError("swap: this engine keeps its adapter beside the weights, expected it merged. Load it with merge.")
        head = self._transformer.head.projection
        if head.weight.dtype != self._transformer.embed.dtype:
            raise AdapterError("swap: this engine's weights are quantised, expected the base's own. Load it with --precision auto.")
        if adapter is not None and head.weight is self._transformer.embed and set(adapter.weights) & set(head.rows):
            raise AdapterError(
                f"{adapter.facts.name}: it adapts lm_head, which shares the embedding's weight here, expected a head of its own. "
                "Load it with Engine.load."
            )

    def swap(self, adapter: Adapter | None) -> None:
        """Put `adapter` (None: nothing) in the place of the present one; it must have passed `check` and preflight.

        Where merging fails midway (memory), the present adapter is put back before the error leaves.
        """
        self._keep(adapter)
        before, self.adapter = self.adapter, adapter
        try:
            self._apply(before, adapter)
        except Exception:
            self._apply(adapter, before)
            self.adapter = before
            raise

    def _keep(self, new: Adapter | None) -> None:
        """Note the base's values of everything the present adapter has changed or the new one will change."""
        changed = _names(self.adapter)
        missing = changed - self._base.keys()
        if missing:
            slots = self._transformer.slots()
            found = {name: tensor.to(slots[name].dtype).clone() for name, tensor in self._tensors() if name in missing}
            if "lm_head.weight" in missing and self._transformer.facts.has_tied_head:
                found["lm_head.weight"] = self._transformer.embed.to("cpu", copy=True)
            if missing - found.keys():
                raise AdapterError(f"swap: {min(missing - found.keys())} is not in the base's files any more, expected them unchanged.")
            self._base.update(found)
        slots = self._transformer.slots()
        for name in _names(new) - self._base.keys():
            self._base[name] = slots[name].to("cpu", copy=True)

    @torch.no_grad()
    def _apply(self, old: Adapter | None, new: Adapter | None) -> None:
        slots = self._transformer.slots()
        for name in _names(old) | _names(new):
            slots[name].copy_(self._base[name])
        if new is None:
            return
        for module, pair in new.weights.items():
            rows = slots[f"{module}.weight"]
            on_device = type(pair)(pair.a.to(rows.device), pair.b.to(rows.device), pair.scale)
            rows.copy_(on_device.delta().add_(rows.float()))
        for module, norm in new.norms.items():
            slots[f"{module}.weight"].copy_(norm)


def _names(adapter: Adapter | None) -> set[str]:
    return set() if adapter is None else {f"{module}.weight" for module in (*adapter.weights, *adapter.norms)}
