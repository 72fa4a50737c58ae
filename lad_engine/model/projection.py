"""One frozen weight of the decoder, with the low-rank paths one adapter lays beside it, or a stack of several to choose from."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .adapter_rows import LowRankStack


class Projection(nn.Module):
    """A linear layer, possibly several of the checkpoint fused by rows (q, k and v; gate and up).

    weight: `[out, in]`; bias: `[out]` or None; `rows` maps the checkpoint's own layer names to their
    [start, stop), in the order of `parts` (name: number of rows). `low_rank` holds one adapter's paths, for all sequences and for
    training; `stack` several adapters, one per sequence.
    """

    stack: LowRankStack | None = None

    def __init__(self, in_width: int, parts: dict[str, int], has_bias: bool, dtype: torch.dtype, device: torch.device | str) -> None:
        super().__init__()
        self.rows: dict[str, tuple[int, int]] = {}
        out = 0
        for name, width in parts.items():
            self.rows[name] = (out, out + width)
            out += width
        self.weight = nn.Parameter(torch.empty(out, in_width, dtype=dtype, device=device), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(out, dtype=dtype, device=device), requires_grad=False) if has_bias else None
        self.low_rank = nn.ModuleList()

    @property
    def is_plain(self) -> bool:
        """Whether the weight alone makes the product: no adapter lies beside it."""
        return not self.low_rank and self.stack is None

    def attach(self, a: Tensor, b: Tensor, scale: float, start: int, stop: int, dropout: float = 0.0) -> LowRank:
        """Lay scale * B A beside rows [start, stop); a `[R, in]`, b `[stop - start, R]`; Parameters stay trainable."""
        path = LowRank(a, b, scale, start, stop, dropout)
        self.low_rank.append(path)
        return path

    def detach(self) -> None:
        """Remove every low-rank path."""
        self.low_rank = nn.ModuleList()

    def forward(self, x: Tensor, lora_linear: Callable[..., Tensor]) -> Tensor:
        """Map `[..., in]` to `[..., out]` with the given op; a stack needs `[B, T, in]`."""
        if self.stack is not None and not self.stack.rows.is_bypassed:
            return lora_linear(x, self.weight, self.bias, stack=self.stack.of(x))
        if not self.low_rank:
            return lora_linear(x, self.weight, self.bias)
        if self.training and any(path.dropout for path in self.low_rank):
            return self._with_dropout(x, lora_linear)
        return lora_linear(x, self.weight, self.bias, [path.path() for path in self.low_rank])

    def _with_dropout(self, x: Tensor, lora_linear: Callable[..., Tensor]) -> Tensor:
        # PEFT drops inputs of the low-rank path only, so the frozen product is taken from the undropped input.
        y = lora_linear(x, self.weight, self.bias)
        for path in self.low_rank:
            dropped = nn.functional.dropout(x, path.dropout, training=True)
            delta = nn.functional.linear(nn.functional.linear(dropped, path.a.to(x.dtype)), path.b.to(x.dtype)) * path.scale
            y = y + nn.functional.pad(delta, (path.start, y.shape[-1] - path.stop))
        return y


class LowRank(nn.Module):
    """The pair A `[R, in]`, B `[out, R]` of one adapted layer, its scale and its rows in the fused weight."""

    def __init__(self, a: Tensor, b: Tensor, scale: float, start: int, stop: int, dropout: float) -> None:
        super().__init__()
        self.a = a if isinstance(a, nn.Parameter) else nn.Parameter(a, requires_grad=False)
        self.b = b if isinstance(b, nn.Parameter) else nn.Parameter(b, requires_grad=False)
        self.scale, self.start, self.stop, self.dropout = scale, start, stop, dropout

    def path(self) -> tuple[Tensor, Tensor, float, int, int]:
        """Return the form the `lora_linear` op takes."""
        return self.a, self.b, self.scale, self.start, self.stop
