"""What parity cannot see of the C++ update: it knows the batches it has read, and reads again whatever has changed."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from lad_engine.kernels.update.cases import random_case
from lad_engine.kernels.update.reference import update as reference

pytest.importorskip("lad_engine._cpu", reason="the C++ extension is not built here")

from lad_engine.kernels.update.cpu_kernel import update


def copied(case):
    out = dict(case)
    out["buffers"] = dataclasses.replace(case["buffers"], **{name: tensor.clone() for name, tensor in vars(case["buffers"]).items()})
    return out


def case_of(seed, B=2, R=9):
    return random_case(torch.Generator().manual_seed(seed), (("random", ""), ("retain", "split"))[:B], R, 4, "cpu")


def assert_same(ours, theirs):
    for name, tensor in vars(ours["buffers"]).items():
        assert torch.equal(tensor, getattr(theirs["buffers"], name)), name


def test_batches_that_take_turns_are_not_mixed_up():
    # More batches than the extension keeps, each for several steps.
    ours = [case_of(seed) for seed in range(7)]
    theirs = [copied(case) for case in ours]
    for _ in range(3):
        for mine, wanted in zip(ours, theirs, strict=True):
            update(**mine)
            reference(**wanted)
            assert_same(mine, wanted)


@pytest.mark.parametrize("name", ("answer", "confidence", "row_steps", "ids", "eos_ids"))
def test_a_tensor_that_was_replaced_is_read_again(name):
    mine = case_of(3)
    wanted = copied(mine)
    update(**mine)
    reference(**wanted)
    before = getattr(mine["buffers"], name)
    kept = before.clone()
    setattr(mine["buffers"], name, before.clone())
    update(**mine)
    reference(**wanted)
    assert_same(mine, wanted)
    assert torch.equal(before, kept)


def test_other_rules_or_tables_are_read_again():
    mine = case_of(4)
    wanted = copied(mine)
    update(**mine)
    reference(**wanted)
    others = {"splits": ~mine["rules"].splits, "redraws": mine["rules"].redraws.clone()}
    mine["rules"] = wanted["rules"] = dataclasses.replace(mine["rules"], **others)
    mine["tables"] = wanted["tables"] = dataclasses.replace(mine["tables"], whole=mine["tables"].whole.clone())
    update(**mine)
    reference(**wanted)
    assert_same(mine, wanted)


def test_what_does_not_fit_is_refused_whenever_it_comes():
    case = case_of(5)
    update(**case)
    right = case["buffers"].confidence
    case["buffers"].confidence = right.double()
    with pytest.raises(ValueError, match=r"update: confidence is torch.float64, expected torch.float32\."):
        update(**case)
    case["buffers"].confidence = right
    with pytest.raises(ValueError, match=r"update: token is of another type, expected torch.int64\."):
        update(**{**case, "token": case["token"].int()})
    update(**case)
