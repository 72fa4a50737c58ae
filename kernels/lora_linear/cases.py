"""Inputs on which every lora_linear backend must agree with the reference."""

from __future__ import annotations

import torch


def cases(device: str, dtype: torch.dtype) -> list[dict]:
    """Return keyword arguments: no path, one path over all rows, two paths of a fused weight with a gap, odd sizes, a bias, scale != 1.

    Then stacks: one adapter and one rank, every row alike; a fused weight with a gap, odd sizes and rank 24, adapters mixed within a
    tile and rows without one; a model's width, one adapter per sequence; nobody has an adapter.
    """

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=device).to(dtype) / shape[-1] ** 0.5

    def stack(A: int, R: int, D: int, W: int, parts: tuple, index: list[int]) -> tuple:
        scales = torch.linspace(0.5, 2.0, A, device=device)
        return normal(A, len(parts), R, D), normal(A, W, R), scales, torch.tensor(index, device=device), parts

    plain = {"x": normal(3, 64), "weight": normal(96, 64), "bias": None, "paths": ()}
    full = {**plain, "paths": ((normal(8, 64), normal(96, 8), 2.0, 0, 96),)}
    fused = {
        "x": normal(2, 17, 123),
        "weight": normal(95, 123),
        "bias": normal(95),
        "paths": ((normal(5, 123), normal(15, 5), 0.5, 80, 95), (normal(3, 123), normal(33, 3), 1.0, 0, 33)),
    }
    smallest = {"x": normal(1, 1), "weight": normal(1, 1), "stack": stack(1, 1, 1, 1, ((0, 1),), [0])}
    mixed = {
        "x": normal(22, 123),
        "weight": normal(95, 123),
        "bias": normal(95),
        "stack": stack(3, 24, 123, 95, ((0, 33), (33, 40), (80, 95)), [2, -1, 0, 2, 2, -1, 1, 0, 1, 2, 0]),
    }
    model = {"x": normal(3, 23, 576), "weight": normal(320, 576), "stack": stack(2, 16, 576, 320, ((0, 192), (256, 320)), [1, -1, 0])}
    strided = {**mixed, "x": normal(22, 160)[:, :123]}
    nobody = {**model, "x": normal(2, 5, 576), "stack": (*model["stack"][:3], torch.tensor([-1, -1], device=device), model["stack"][4])}
    return [plain, full, fused, smallest, mixed, strided, model, nobody]


def bytes_moved(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, paths: tuple = (), stack: tuple | None = None
) -> int:
    """Read x and every weight once (of a stack, the adapters there can be), write the output once."""
    rows = x.numel() // x.shape[-1]
    weights = weight.numel() + (0 if bias is None else bias.numel()) + sum(path[0].numel() + path[1].numel() for path in paths)
    if stack is not None:
        a, b, _, index, _ = stack
        weights += (a[0].numel() + b[0].numel()) * min(a.shape[0], index.numel())
    return (x.numel() + weights + rows * weight.shape[0]) * x.element_size()


def shape(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, paths: tuple = (), stack: tuple | None = None
) -> tuple[dict, dict]:
    """Return what a measured table knows a call by; adapters: what lies beside the weight, a stack by its rank."""
    adapters = f"rank {stack[1].shape[2]} by sequence" if stack is not None else f"{len(paths)} for all" if paths else "none"
    model = {"D": weight.shape[1], "W": weight.shape[0], "adapters": adapters, "dtype": str(x.dtype).removeprefix("torch.")}
    return model, {"rows": max(x.numel() // x.shape[-1], 1)}
