"""The one tolerance rule: a kernel may err a little more than PyTorch itself does in that dtype, measured against fp32 truth."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

MAX_RATIO = 2.0
RMS_RATIO = 1.5
# Absolute errors allowed in fp32, where the reference is its own truth, as a share of the largest output.
FLOAT32_FLOOR = 2e-6
QUARTER_ULP = {torch.bfloat16: 2.0**-10, torch.float16: 2.0**-13, torch.float32: FLOAT32_FLOOR}

QUANTISED = (torch.int8, torch.float8_e4m3fn)
STEP_SHARE = 0.01


def assert_parity(
    name: str, kernel: Callable, reference: Callable, case: Mapping[str, Any], exact: bool = False, writes: Sequence[str] = ()
) -> None:
    """Run both on `case` and compare every output tensor, the arguments named in `writes` among them.

    Truth is the reference in fp32 on the same rounded inputs; the kernel's max error may be at most 2 x and its RMS error at most
    1.5 x what the reference makes in the dtype of the inputs, plus a quarter ulp of the largest output (2e-6 of it in fp32).
    Integer and boolean outputs, and everything where `exact`, must be equal; quantised outputs may lie one step of their type apart
    in one place of a hundred, where the number that was rounded lay between two. Other inputs must be left as they were.
    """
    ours, theirs = (_outputs(name, function, case, writes) for function in (kernel, reference))
    assert len(ours) == len(theirs), f"{name}: {len(ours)} outputs, expected {len(theirs)}"
    if exact:
        _assert_same(name, ours, theirs)
        return
    truth = _outputs(name, reference, _widened(case), writes)
    for index, (mine, plain, true) in enumerate(zip(ours, theirs, truth, strict=True)):
        where = f"{name}, output {index} {tuple(plain.shape)} {plain.dtype}"
        assert (mine.shape, mine.dtype) == (plain.shape, plain.dtype), f"{where}: got {tuple(mine.shape)} {mine.dtype}"
        if plain.dtype in QUANTISED:
            _assert_a_step_apart(where, mine, plain)
        elif plain.is_floating_point():
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


def _assert_a_step_apart(where: str, mine: Tensor, plain: Tensor) -> None:
    steps = (_steps(mine) - _steps(plain)).abs()
    share = float((steps > 0).double().mean())
    assert share <= STEP_SHARE, f"{where}: {share:.2%} of the values differ, expected at most {STEP_SHARE:.0%}"
    assert int(steps.max()) <= 1, f"{where}: values are up to {int(steps.max())} steps apart, expected 1"


def _steps(values: Tensor) -> Tensor:
    """Number the values of an 8-bit type in order; e4m3 is a sign and a magnitude."""
    if values.dtype == torch.int8:
        return values.int()
    bits = values.view(torch.uint8).int()
    return torch.where(bits >= 128, 128 - bits, bits)


def _assert_same(where: str, got: Sequence[Any], wanted: Sequence[Any]) -> None:
    for index, (mine, theirs) in enumerate(zip(got, wanted, strict=True)):
        if isinstance(theirs, Tensor):
            assert (mine.shape, mine.dtype) == (theirs.shape, theirs.dtype), f"{where}, {index}: {tuple(mine.shape)} {mine.dtype}"
            # torch compares no 8-bit floats.
            mine, theirs = (x.view(torch.uint8) if x.dtype in QUANTISED else x for x in (mine, theirs))
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
    if dataclasses.is_dataclass(value):
        return _flatten(vars(value))
    return [value]


def _copy(value: Any) -> Any:
    return _mapped(value, lambda tensor: tensor.clone())


def _widened(value: Any) -> Any:
    if isinstance(value, Mapping) and value.get("dtype") in (torch.bfloat16, torch.float16):
        # A type asked for is widened like the tensors.
        value = {**value, "dtype": torch.float32}
    return _mapped(value, lambda tensor: tensor.float() if tensor.is_floating_point() else tensor)


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {name: _mapped(item, change) for name, item in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_mapped(item, change) for item in value)
    if dataclasses.is_dataclass(value):
        return dataclasses.replace(value, **_mapped(vars(value), change))
    return value
