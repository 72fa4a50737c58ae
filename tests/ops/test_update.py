"""The update op over whole decodes: both backends alike step after step, rows that are done untouched, rows independent of one another."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from option_sets import OPTION_SETS, params_of
from stub_model import EOS, MASK, OPS, VOCABULARY, canvas

from lad_engine.denoisers.lad_state import WHOLE, LadState, new_state
from lad_engine.kernels.update import OP
from lad_engine.kernels.update import buffers as contract
from lad_engine.kernels.update.cases import EVERY_RULE, STEPS, random_case
from lad_engine.kernels.update.reference import update
from lad_engine.samplers.row_rules import RowRules

FIELDS = tuple(field.name for field in dataclasses.fields(contract.UpdateBuffers))
LENGTHS = (1, 7, 123, 12, 40)
EVERYTHING = frozenset(contract.RULES)


@pytest.fixture
def triton_update():
    pytest.importorskip("triton", reason="Triton is only published for Linux")
    return OP.implementation("triton")


@pytest.fixture(params=("reference", "triton"))
def backend(request):
    if request.param == "triton":
        pytest.importorskip("triton", reason="Triton is only published for Linux")
    return OP.implementation(request.param)


def case_of(rules, R, step=4, seed=0, device="cpu"):
    return random_case(torch.Generator().manual_seed(seed), rules, R, step, device)


def assert_same(ours, theirs, where=""):
    for name in FIELDS:
        mine, wanted = getattr(ours, name), getattr(theirs, name)
        assert torch.equal(mine, wanted), f"{where} {name}: {(mine != wanted).nonzero()[:4].tolist()}"


def prediction(state, generator):
    """A token and a confidence per column, both often tied, some tokens equal to the last; garbage where nobody may look."""
    B, R = state.answer.shape
    token = torch.randint(MASK + 1, VOCABULARY, (B, R), generator=generator).to(state.answer.device)
    token = torch.where((torch.rand(B, R, generator=generator) < 0.6).to(token.device) & (state.predicted > MASK), state.predicted, token)
    token[torch.rand(B, R, generator=generator) < 0.15] = EOS
    confidence = (torch.randint(0, 6, (B, R), generator=generator) / 5).to(token.device)
    return torch.where(state.is_open, token, -9), torch.where(state.is_open, confidence, torch.nan)


def step_both(kernel, state, other, tables_of, generator, where):
    token, confidence = prediction(state, generator)
    arguments = (tables_of.rules, tables_of.tables, token, confidence)
    for function, buffers in ((update, state), (kernel, other)):
        function(buffers, *arguments, mask_id=MASK, used=tables_of.rules.used)
    assert_same(other, state, where)


@pytest.mark.parametrize("index", range(len(OPTION_SETS)), ids=list(OPTION_SETS))
def test_every_option_set_updates_alike_step_after_step(index, triton_update, device):
    R, name = LENGTHS[index % len(LENGTHS)], list(OPTION_SETS)[index]
    draft = [7 + i % 9 if i % 3 else MASK for i in range(R)]
    params = params_of(name, max_new_tokens=R, steps=45, seed=index * 7919, noise_start=0.7)
    state = new_state([canvas(3, draft=draft, fixed=(2,) if R > 3 else ())], [params], MASK, (EOS, 9), device, OPS)
    other, generator = copy.deepcopy(state), torch.Generator().manual_seed(index)
    for step in (0, 1, 44):
        for one in (state, other):
            one.step.fill_(step)
            one.row_steps.fill_(step)
        step_both(triton_update, state, other, state, generator, f"{name}, step {step}")
    assert bool(state.done.all())


@pytest.mark.parametrize(("R", "rules"), [(256, EVERY_RULE[2:12:3]), (1000, EVERY_RULE[4:13:8]), (2048, EVERY_RULE[4:6])])
def test_mixed_batches_update_alike_step_after_step(R, rules, triton_update, device):
    case = case_of(rules, R, step=STEPS - 2, device=device)
    state, arguments = case.pop("buffers"), dict(case)
    other = copy.deepcopy(state)
    for step in range(2):
        update(state, **arguments)
        triton_update(other, **arguments)
        assert_same(other, state, f"step {step}")
    assert bool(state.done.all())


def test_rows_that_are_done_keep_everything_and_the_counter_still_advances(backend, device):
    case = case_of(EVERY_RULE[:4], 24, device=device)
    state = case.pop("buffers")
    state.done.fill_(True)
    before = copy.deepcopy(state)
    backend(state, **case)
    before.acted.fill_(False)
    before.step.add_(1)
    assert_same(state, before)


def test_a_row_does_not_depend_on_its_batch_mates_or_the_rules_they_follow(backend, device):
    rules = EVERY_RULE[1:14:4]
    case = case_of(rules, 33, device=device)
    together, alone = copy.deepcopy(case), case
    together["used"] = EVERYTHING
    backend(**together)
    for b in range(len(rules)):
        tables = alone["tables"]
        row = {
            "buffers": _row(alone["buffers"], b, shared=("eos_ids", "step")),
            "rules": _row(alone["rules"], b),
            "tables": contract.UpdateTables(tables.whole[..., b : b + 1].contiguous(), tables.probability[:, b : b + 1].contiguous()),
            "token": alone["token"][b : b + 1],
            "confidence": alone["confidence"][b : b + 1],
            "mask_id": alone["mask_id"],
            "used": frozenset({rules[b][0]}) | ({"split"} if "split" in rules[b][1] else set()),
        }
        backend(**row)
        assert_same(row["buffers"], _row(together["buffers"], b, shared=("eos_ids", "step")), rules[b])


def _row(part, b, shared=()):
    values = {name: value.clone() if name in shared else value[b : b + 1].clone() for name, value in vars(part).items()}
    return type(part)(**values)


def test_what_stands_in_columns_nobody_reads_changes_nothing(backend, device):
    case = case_of(EVERY_RULE[::5], 40, device=device)
    clean, dirty = copy.deepcopy(case), copy.deepcopy(case)
    visible = case["tables"].whole[4, WHOLE.index("visible")][:, None]
    unread = ~(case["buffers"].is_open & (torch.arange(40, device=device) < visible))
    dirty["token"][unread], dirty["confidence"][unread] = -9, torch.nan
    backend(**clean)
    backend(**dirty)
    assert_same(dirty["buffers"], clean["buffers"])


@pytest.mark.parametrize(
    ("draft", "fixed", "stops"),
    [
        # What the answer shows ahead of a step that commits one more position: the surest, which is the last.
        ((7, EOS, MASK, MASK, MASK, MASK), (), True),
        ((MASK, EOS, MASK, MASK, MASK, MASK), (), False),
        ((7, EOS, MASK, 8, MASK, MASK), (3,), False),
        ((7, 8, MASK, MASK, EOS, MASK), (), False),
        ((7, 8, 9, 7, 8, MASK), (), True),
    ],
)
@pytest.mark.parametrize("name", ("reference", "triton", "cpu"))
def test_a_transferring_row_stops_once_its_text_is_final_and_fills_what_stands_behind(name, draft, fixed, stops, device):
    if name == "triton":
        pytest.importorskip("triton", reason="Triton is only published for Linux")
    if name == "cpu" and device != "cpu":
        pytest.skip("the CPU backend works on CPU tensors")
    for early_stop in (True, False):
        params = params_of("llada", max_new_tokens=6, steps=9, early_stop=early_stop)
        state = new_state([canvas(3, draft=list(draft), fixed=fixed)], [params], MASK, (EOS,), device, OPS)
        state.answer.copy_(torch.tensor([draft]))
        token = torch.tensor([[9, 9, 9, 9, 9, 10]], device=device)
        confidence = torch.arange(6.0, device=device)[None] / 6
        OP.implementation(name)(state, state.rules, state.tables, token, confidence, mask_id=MASK, used=state.rules.used)
        masked = [i for i, shown in enumerate(draft) if shown == MASK]
        wanted = list(draft)
        for i in masked if stops and early_stop else masked[-1:]:
            wanted[i] = int(token[0, i])
        assert state.answer.tolist() == [wanted] and state.ids[0, 3:].tolist() == wanted
        assert (bool(state.done), bool(state.stopped_early)) == (stops and early_stop,) * 2


def test_the_host_lays_out_what_the_op_reads():
    state = {field.name for field in dataclasses.fields(LadState)}
    assert set(FIELDS) <= state
    rules = {field.name for field in dataclasses.fields(RowRules)}
    # The penalties are read before the head chooses.
    beside = {"used", "frequency_penalty", "presence_penalty"}
    assert rules == {field.name for field in dataclasses.fields(contract.UpdateRules)} | beside
    assert WHOLE == contract.WHOLE


def test_an_answer_no_tile_holds_is_refused_with_the_way_out(triton_update, device):
    case = case_of(EVERY_RULE[:1], 2049, device=device)
    with pytest.raises(ValueError, match=r"update: token is \(1, 2049\), expected at most 2048 positions\. Use --ops update=reference\."):
        triton_update(**case)


def test_wrong_arguments_are_named(backend, device):
    case = case_of(EVERY_RULE[:2], 9, device=device)
    with pytest.raises(ValueError, match=r"update: used is \['magic'\], expected names among none, random"):
        backend(**{**case, "used": frozenset({"magic"})})
    with pytest.raises(ValueError, match=r"update: token is \(2, 9\) torch.int32, expected \(2, 9\) torch.int64"):
        backend(**{**case, "token": case["token"].int()})
    with pytest.raises(ValueError, match=r"update: rules.splits is \(1,\)"):
        backend(**{**case, "rules": dataclasses.replace(case["rules"], splits=case["rules"].splits[:1])})
    with pytest.raises(ValueError, match=r"update: the tables are strided"):
        tables = case["tables"]
        backend(**{**case, "tables": dataclasses.replace(tables, whole=tables.whole.transpose(0, 1).contiguous().transpose(0, 1))})
    with pytest.raises(ValueError, match=r"update: the \[B, R\] buffers have strides"):
        backend(**{**case, "buffers": dataclasses.replace(case["buffers"], answer=case["buffers"].answer.t().contiguous().t())})
