"""The one tolerance rule: a kernel may err a little more than PyTorch itself does in that dtype, measured against fp32 truth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

MAX_RATIO = 2.0
RMS_RATIO = 1.5
# Absolute errors allowed in fp32, where the reference is its own truth, as a share of the largest output.
FLOAT32_FLOOR = 2e-6
QUARTER_ULP = {torch.bfloat16: 2.0**-10, torch.float16: 2.0**-13, torch.float32: FLOAT32_FLOOR}


def assert_parity(
    name: str, kernel: Callable, reference: Callable, case: Mapping[str, Any], exact: bool = False, writes: Sequence[str] = ()
) -> None:
    """Run both on `case` and compare every output tensor, the arguments named in `writes` among them.

    Truth is the reference in fp32 on the same rounded inputs; the kernel's max error may be at most 2 x and its RMS error at most
    1.5 x what the reference makes in the dtype of the inputs, plus a quarter ulp of the largest output (2e-6 of it in fp32).
    Integer and boolean outputs, and everything where `exact`, must be equal. Other inputs must be left as they were.
    """
    ours, theirs, truth = (_outputs(name, *run, writes) for run in ((kernel, case), (reference, case), (reference, _widened(case))))
    assert len(ours) == len(theirs), f"{name}: {len(ours)} outputs, expected {len(theirs)}"
    if exact:
        _assert_same(name, ours, theirs)
        return
    for index, (mine, plain, true) in enumerate(zip(ours, theirs, truth, strict=True)):
        where = f"{name}, output {index} {tuple(plain.shape)} {plain.dtype}"
        assert (mine.shape, mine.dtype) == (plain.shape, plain.dtype), f"{where}: got {tuple(mine.shape)} {mine.dtype}"
        if plain.is_floating_point():
            _assert_close(where, mine, plain, true)
        else:
            assert torch.equal(mine, plain), f"{where}: {_first_difference(mine, plain)}"


def _outputs(name: str, function: Callable, case: Mapping[str, Any], writes: Sequence[str]) -> list[Any]:
    # Only what is written is copied: a copy of a slice would not be strided.
    written, read = ({key: value for key, value in case.items() if (key in writes) is is_written} for is_written in (True, False))
    written, before = _copy(written), _copy(read)
    result = _flatten(function(**{key: written.get(key, case[key]) for key in case}))
    _assert_same(f"{name} changed its input", _flatten(read), _flatten(before))
    return result + _flatten(written)


def _assert_close(where: str, mine: Tensor, plain: Tensor, true: Tensor) -> None:
    mine, wide, true = mine.double(), plain.double(), true.double()
    finite = true.isfinite()
    assert torch.equal(mine[~finite].nan_to_num(nan=0.5), true[~finite].nan_to_num(nan=0.5)), f"{where}: infinities or NaN differ"
    mine, wide, true = mine[finite], wide[finite], true[finite]
    if not true.numel():
        return
    floor = QUARTER_ULP[plain.dtype] * float(true.abs().max())
    for kind, error, allowed, ratio in (
        ("max", (mine - true).abs().max(), (wide - true).abs().max(), MAX_RATIO),
        ("RMS", (mine - true).square().mean().sqrt(), (wide - true).square().mean().sqrt(), RMS_RATIO),
    ):
        limit = ratio * float(allowed) + floor
        assert float(error) <= limit, f"{where}: {kind} error is {float(error):.3g}, PyTorch's own {float(allowed):.3g}, limit {limit:.3g}"


def _assert_same(where: str, got: Sequence[Any], wanted: Sequence[Any]) -> None:
    for index, (mine, theirs) in enumerate(zip(got, wanted, strict=True)):
        if isinstance(theirs, Tensor):
            assert (mine.shape, mine.dtype) == (theirs.shape, theirs.dtype), f"{where}, {index}: {tuple(mine.shape)} {mine.dtype}"
            assert torch.equal(mine, theirs), f"{where}, {index}: {_first_difference(mine, theirs)}"
        else:
            assert mine == theirs, f"{where}, {index}: {mine!r}, expected {theirs!r}"


def _first_difference(mine: Tensor, theirs: Tensor) -> str:
    place = tuple((mine != theirs).nonzero()[0].tolist())
    return f"{int((mine != theirs).sum())} differ, first at {place}: {mine[place].item()}, expected {theirs[place].item()}"


def _flatten(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return [leaf for item in value.values() for leaf in _flatten(item)]
    if isinstance(value, (tuple, list)):
        return [leaf for item in value for leaf in _flatten(item)]
    return [value]


def _copy(value: Any) -> Any:
    return _mapped(value, lambda tensor: tensor.clone())


def _widened(value: Any) -> Any:
    return _mapped(value, lambda tensor: tensor.float() if tensor.is_floating_point() else tensor)


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {name: _mapped(item, change) for name, item in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_mapped(item, change) for item in value)
    return value
