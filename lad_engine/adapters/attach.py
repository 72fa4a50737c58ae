"""Put an adapter on a decoder: beside the weights (unmerged), or added into them in fp32 and rounded once (merged)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import AdapterError
from ..model.transformer import Transformer
from .low_rank import Adapter


@dataclass
class Attached:
    """An adapter beside the weights; `detach` takes it off and leaves the decoder bit for bit as it was."""

    transformer: Transformer
    norms: list[tuple[nn.Parameter, Tensor]] = field(default_factory=list)
    tied_head: nn.Parameter | None = None

    def detach(self) -> None:
        """Remove the low-rank paths and put the base's norms back."""
        for projection in self.transformer.projections():
            projection.detach()
        _restore(self.norms, self.transformer, self.tied_head)


@dataclass
class Merged:
    """An adapter inside the weights; `unmerge` restores the saved originals exactly, `merge_again` puts it back."""

    transformer: Transformer
    adapter: Adapter
    originals: list[tuple[Tensor, Tensor]] | None
    norms: list[tuple[nn.Parameter, Tensor]] = field(default_factory=list)
    tied_head: nn.Parameter | None = None
    is_merged: bool = True

    def unmerge(self) -> None:
        """Restore every weight the merge changed.

        Raises:
            AdapterError: the originals were not kept, or the adapter is not merged now.
        """
        if self.originals is None:
            raise AdapterError(
                f"{self.adapter.facts.name}: the original weights were not kept at the merge, expected keep_originals. Load the base again."
            )
        if not self.is_merged:
            raise AdapterError(f"{self.adapter.facts.name}: is not merged now, expected a merged adapter.")
        with torch.no_grad():
            for rows, original in self.originals:
                rows.copy_(original)
        _restore(self.norms, self.transformer, self.tied_head)
        self.is_merged = False

    def merge_again(self) -> None:
        """Merge the same adapter into the restored weights."""
        if self.is_merged:
            raise AdapterError(f"{self.adapter.facts.name}: is merged already, expected it unmerged first.")
        self.__dict__.update(merge(self.transformer, self.adapter, keep_originals=self.originals is not None).__dict__)


def attach(transformer: Transformer, adapter: Adapter) -> Attached:
    """Lay the low-rank paths beside the weights, in their dtype and on their device, and replace the norms.

    Raises:
        AdapterError: a module or norm is unknown, a shape does not fit, or the decoder carries an adapter already.
    """
    _check_free(transformer)
    check_fit(transformer, adapter)
    attached = Attached(transformer, tied_head=_tied_head(transformer))
    for module, pair in adapter.weights.items():
        projection, start, stop = transformer.projection(module)
        kind: dict[str, Any] = {"device": projection.weight.device, "dtype": projection.weight.dtype}
        projection.attach(pair.a.to(**kind), pair.b.to(**kind), pair.scale, start, stop)
    attached.norms = _replace_norms(transformer, adapter)
    return attached


def merge(transformer: Transformer, adapter: Adapter, *, keep_originals: bool = True) -> Merged:
    """Add every update into its weight: W' = round(W + scale * (b @ a)), the sum in fp32, rounded once to the dtype of W.

    keep_originals stores the changed rows in host memory, so that `unmerge` is exact. A tied head that is adapted is untied first.
    Raises:
        AdapterError: a module or norm is unknown, a shape does not fit, or the decoder carries an unmerged adapter.
    """
    _check_free(transformer)
    check_fit(transformer, adapter)
    tied_head = _tied_head(transformer)
    originals: list[tuple[Tensor, Tensor]] | None = [] if keep_originals else None
    with torch.no_grad():
        for module, pair in adapter.weights.items():
            projection, start, stop = transformer.projection(module)
            rows = projection.weight.data[start:stop]
            if originals is not None:
                originals.append((rows, rows.to("cpu", copy=True)))
            on_device = type(pair)(pair.a.to(rows.device), pair.b.to(rows.device), pair.scale)
            rows.copy_(on_device.delta().add_(rows.float()))
    return Merged(transformer, adapter, originals, _replace_norms(transformer, adapter), tied_head)


def check_fit(transformer: Transformer, adapter: Adapter) -> None:
    """Raise AdapterError naming the first module or norm of `adapter` that this decoder does not have or that has another shape."""
    known = {name: (projection, start, stop) for projection, name, (start, stop) in _places(transformer)}
    for module, pair in adapter.weights.items():
        if module not in known:
            # the decoder's own refusal names modules it does have
            transformer.projection(module)
        projection, start, stop = known[module]
        wanted = (stop - start, projection.weight.shape[1])
        if (pair.out_width, pair.in_width) != wanted:
            raise AdapterError(
                f"{adapter.facts.name}: {module} is adapted as {(pair.out_width, pair.in_width)}, expected {wanted} of this base. "
                f"Load the base it was made for{_base_hint(adapter)}."
            )
    for module, norm in adapter.norms.items():
        weight = transformer.norm(module)
        if norm.shape != weight.shape:
            raise AdapterError(
                f"{adapter.facts.name}: norm {module} is {tuple(norm.shape)}, expected {tuple(weight.shape)} of this base. "
                f"Load the base it was made for{_base_hint(adapter)}."
            )


def _places(transformer: Transformer) -> list[tuple[Any, str, tuple[int, int]]]:
    return [(projection, name, rows) for projection in transformer.projections() for name, rows in projection.rows.items()]


def _check_free(transformer: Transformer) -> None:
    if any(projection.weight.dtype != transformer.embed.dtype for projection in transformer.projections()):
        raise AdapterError("adapter: this model's weights are quantised already, expected the base's own. Load it again with the adapter.")
    if any(projection.low_rank for projection in transformer.projections()):
        raise AdapterError("adapter: this model carries an unmerged adapter already, expected none. Detach it first.")


def _replace_norms(transformer: Transformer, adapter: Adapter) -> list[tuple[nn.Parameter, Tensor]]:
    saved = []
    with torch.no_grad():
        for module, new in adapter.norms.items():
            weight = transformer.norm(module)
            saved.append((weight, weight.detach().clone()))
            weight.copy_(new)
    return saved


def _tied_head(transformer: Transformer) -> nn.Parameter | None:
    return transformer.embed if transformer.head.projection.weight is transformer.embed else None


def _restore(norms: list[tuple[nn.Parameter, Tensor]], transformer: Transformer, tied_head: nn.Parameter | None) -> None:
    with torch.no_grad():
        for weight, original in norms:
            weight.copy_(original)
    if tied_head is not None:
        transformer.head.projection.weight = tied_head


def _base_hint(adapter: Adapter) -> str:
    return f" ({adapter.facts.base_name})" if adapter.facts.base_name else ""
