"""Where a model runs and in which precision, when nobody said so."""

from __future__ import annotations

import torch

from .errors import ConfigError


def resolve_device(name: str) -> torch.device:
    """Return the device called `name`; "auto" is CUDA where this machine has it.

    Raises:
        ConfigError: no such kind of device, or none of it here.
    """
    has_cuda = torch.cuda.is_available()
    wanted = ("cuda" if has_cuda else "cpu") if name == "auto" else name
    accepted = "auto, cpu, cuda or cuda:N" if has_cuda else "auto or cpu (this machine or this torch has no CUDA)"
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise ConfigError(f"device is {name!r}, expected {accepted}.") from error
    count = torch.cuda.device_count() if has_cuda else 0
    if device.type not in ("cpu", "cuda") or (device.type == "cuda" and (device.index or 0) >= count):
        raise ConfigError(f"device is {name!r}, expected {accepted}.")
    return device


def native_dtype(device: torch.device) -> torch.dtype:
    """Return bfloat16 where the hardware computes in it, else float32: emulated, it is slower than fp32 on a CPU."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    # Not public in torch 2.11 to 2.13; a torch without it gets fp32, which is right everywhere.
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return torch.bfloat16 if probe is not None and probe() else torch.float32
