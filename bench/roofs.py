"""The two ceilings of a machine, measured: bytes a copy moves per second and operations a large matrix product does per second."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.timing import call_us, release

COPY_BYTES = {"cuda": 2 << 30, "cpu": 64 << 20}
GEMM_SIZE = {"cuda": 8192, "cpu": 768}
QUICK_COPY_BYTES, QUICK_GEMM_SIZE = 4 << 20, 256


@dataclass(frozen=True)
class Roofs:
    """bytes_per_s of a device-to-device copy, read and write counted; flops_per_s of a square product by dtype name."""

    bytes_per_s: float
    flops_per_s: dict[str, float]

    def floor_us(self, moved_bytes: int, flops: int, dtype: str) -> float:
        """Return the least time of work that moves `moved_bytes` and does `flops` in `dtype` (fp32's rate where that was not measured)."""
        rate = self.flops_per_s.get(dtype, self.flops_per_s["float32"])
        return max(moved_bytes / self.bytes_per_s, flops / rate) * 1e6

    def as_dict(self) -> dict:
        """Return the form a result stores: GB/s and TFLOP/s."""
        return {
            "copy_gb_per_s": self.bytes_per_s / 1e9,
            "gemm_tflop_per_s": {dtype: rate / 1e12 for dtype, rate in self.flops_per_s.items()},
        }


def measure_roofs(device: str, dtypes: tuple[str, ...] = ("bfloat16", "float32"), is_quick: bool = False) -> Roofs:
    """Measure both ceilings on random data; `is_quick` uses sizes that prove the code and say nothing about the machine."""
    kind = torch.device(device).type
    size = QUICK_COPY_BYTES if is_quick else COPY_BYTES[kind]
    copy = call_us(_copy(size, device), device, calls=4, repeats=5)
    n = QUICK_GEMM_SIZE if is_quick else GEMM_SIZE[kind]
    flops = {}
    for name in dict.fromkeys((*dtypes, "float32")):
        flops[name] = 2 * n**3 / call_us(_product(n, getattr(torch, name), device), device, calls=4, repeats=5)["median_us"] * 1e6
    if kind == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9):
        flops["float8_e4m3fn"] = 2 * n**3 / call_us(_scaled_product(n, device), device, calls=4, repeats=5)["median_us"] * 1e6
    release()
    return Roofs(2 * size / copy["median_us"] * 1e6, flops)


def _copy(size: int, device: str) -> Callable[[], Tensor]:
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def _product(n: int, dtype: torch.dtype, device: str) -> Callable[[], Tensor]:
    a, b = torch.randn(n, n, device=device).to(dtype), torch.randn(n, n, device=device).to(dtype)
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=out)


def _scaled_product(n: int, device: str) -> Callable[[], Tensor]:
    def rows() -> tuple[Tensor, Tensor]:
        return torch.randn(n, n, device=device).to(torch.float8_e4m3fn), torch.ones(n, 1, device=device)

    (a, scale_a), (b, scale_b) = rows(), rows()
    return lambda: torch._scaled_mm(a, b.t(), scale_a=scale_a, scale_b=scale_b.t(), out_dtype=torch.bfloat16)
