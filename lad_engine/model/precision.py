"""Projections whose weights are held in 8 bits: fp8 or int8 products of quantised rows, or int8 weights widened as they are read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import AdapterError, ConfigError
from .projection import Projection
from .transformer import Transformer

STORED = {"fp8": torch.float8_e4m3fn, "int8": torch.int8, "int8_weights": torch.int8}
# The first NVIDIA GPUs that multiply e4m3 (Ada), and those that multiply int8 matrices as `_int_mm` asks (Turing).
LEAST_CAPABILITY = {"fp8": (8, 9), "int8": (7, 5)}
# A weight is quantised this many values at a time, so that its fp32 copy stays small beside it.
MOST_VALUES = 1 << 22


@dataclass(frozen=True)
class QuantisedRows:
    """Rows a norm or an activation has quantised for the projection that reads them; values `[..., in]`, scale `[...]` fp32.

    dtype: what they were rounded from, which is what the projection answers in.
    """

    values: Tensor
    scale: Tensor
    dtype: torch.dtype

    def __len__(self) -> int:
        return len(self.values)


class QuantisedProjection(Projection):
    """A projection after `quantise`: weight `[out, in]` in 8 bits, weight_scale `[out]` fp32, and the bias and low-rank paths it had.

    Low-rank paths stay in the compute dtype and are added on top.
    """

    def __init__(self, original: Projection, precision: str, ops: Any) -> None:
        # Not Projection's own: it would allocate the wide weight once more.
        nn.Module.__init__(self)
        self.rows, self.bias, self.low_rank = original.rows, original.bias, original.low_rank
        self.dtype, self.stored = original.weight.dtype, STORED[precision]
        self._has_quantised_rows, self._ops = precision != "int8_weights", ops
        values, scale = quantised_weight(original.weight.detach(), self.stored, ops)
        self.weight = nn.Parameter(values, requires_grad=False)
        self.register_buffer("weight_scale", scale, persistent=False)
        self.train(original.training)

    def forward(self, x: Tensor | QuantisedRows, lora_linear: Callable[..., Tensor]) -> Tensor:
        """Map `[..., in]`, or rows quantised already, to `[..., out]` in the compute dtype; `lora_linear` has nothing to do here."""
        if self.stack is not None:
            raise AdapterError("precision: several adapters lie beside weights in 8 bits, expected one at most. Load with precision auto.")
        if isinstance(x, QuantisedRows):
            return self._ops.quantised_linear(x.values, x.scale, self.weight, self.weight_scale, self.bias, self.dtype)
        if self._has_quantised_rows:
            rows = self._ops.quantise_rows(x, self.stored)
            y = self._ops.quantised_linear(*rows, self.weight, self.weight_scale, self.bias, self.dtype)
        else:
            y = self._ops.weight_only_linear(x, self.weight, self.weight_scale, self.bias)
        for path in self.low_rank:
            low = nn.functional.linear(x, path.a.to(x.dtype))
            y[..., path.start : path.stop] += nn.functional.linear(low, path.b.to(x.dtype)) * path.scale
        return y


def check_precision(precision: str, device: torch.device, chosen: Mapping[str, str], batch_invariant: bool = False) -> None:
    """Refuse a precision this device does not compute in, before anything is loaded.

    chosen: backend of each op; the reference of quantised_linear, asked for by name, computes fp8 anywhere (slowly, for agreement).
    Raises:
        ConfigError: naming what is needed and what to use instead.
    """
    if precision not in LEAST_CAPABILITY or chosen.get("quantised_linear") == "reference":
        return
    least = LEAST_CAPABILITY[precision]
    if device.type != "cuda":
        if precision == "fp8":
            raise ConfigError(
                f"precision is fp8, but the device is {device.type}, expected a GPU of sm_89 or newer. Use --precision int8, or "
                "--ops quantised_linear=reference to see what fp8 answers."
            )
        return
    if batch_invariant and precision == "fp8":
        raise ConfigError(
            "precision is fp8 with batch_invariant, expected int8 or auto: the library's fp8 products choose their tiles by the batch. "
            "Leave --batch-invariant out."
        )
    capability = torch.cuda.get_device_capability(device)
    if capability < least:
        raise ConfigError(
            f"precision is {precision}, but this GPU is sm_{capability[0]}{capability[1]}, expected sm_{least[0]}{least[1]} or newer. "
            "Use --precision int8_weights to save memory, or auto."
        )


def quantise(transformer: Transformer, precision: str) -> None:
    """Replace every projection's weight, the head's included, by its 8-bit form, freeing the originals one by one.

    Embeddings and norms stay. A tied head is untied: the embedding keeps its precision. Where rows are quantised too and no low-rank path
    needs the wide rows, the norm and the activation before a projection hand it quantised rows.
    Raises:
        ConfigError: the decoder is quantised already.
    """
    if precision == "auto":
        return
    ops, projections = transformer.ops, transformer.projections()
    if any(isinstance(projection, QuantisedProjection) for projection in projections):
        raise ConfigError("precision: this decoder is quantised already, expected the base's own weights. Load the base again.")
    has_low_rank = not all(projection.is_plain for projection in projections)
    del projections
    for module in [transformer.head, *transformer.layers]:
        for name, child in list(module.named_children()):
            if isinstance(child, Projection):
                setattr(module, name, QuantisedProjection(child, precision, ops))
    if precision != "int8_weights" and not has_low_rank:
        transformer.ops = transformer.head.ops = _quantising(ops, STORED[precision])


def quantised_weight(weight: Tensor, dtype: torch.dtype, ops: Any) -> tuple[Tensor, Tensor]:
    """Return `weight` `[out, in]` in 8 bits and the scale `[out]` of each of its rows, made in small pieces."""
    values = torch.empty(weight.shape, dtype=dtype, device=weight.device)
    scale = torch.empty(weight.shape[0], dtype=torch.float32, device=weight.device)
    piece = max(1, MOST_VALUES // weight.shape[1])
    for start in range(0, weight.shape[0], piece):
        part = slice(start, start + piece)
        narrow, scale[part] = ops.quantise_rows(weight[part], dtype)
        # By their bytes: not every build of torch copies slices of 8-bit floats.
        values.view(torch.int8)[part] = narrow.view(torch.int8)
    return values, scale


def _quantising(ops: Any, dtype: torch.dtype) -> Any:
    """Return `ops` with a norm and an activation that answer in quantised rows; every reader of theirs is a projection."""

    def add_rmsnorm(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float = 1e-5) -> tuple[QuantisedRows, Tensor]:
        values, scale, h = ops.rmsnorm_quantise(x, residual, weight, eps, dtype)
        return QuantisedRows(values, scale, x.dtype), h

    def swiglu(gate_up: Tensor) -> QuantisedRows:
        return QuantisedRows(*ops.swiglu_quantise(gate_up, dtype), gate_up.dtype)

    return dataclasses.replace(ops, add_rmsnorm=add_rmsnorm, swiglu=swiglu)
