"""What a person or a client gets to see of a decode, and the loop that drives it."""

from __future__ import annotations

import pytest
from stub_model import EOS, MASK, OPS, OracleModel, StubModel, canvas

from lad_engine.config import SamplingParams
from lad_engine.denoisers.lad import LadDenoiser
from lad_engine.runtime.readout import read_event, read_outcome
from lad_engine.runtime.runner import run, steps


def begin(model, canvases, **settings):
    denoiser = LadDenoiser(model, OPS)
    params = SamplingParams(**{"steps": 6, "temperature": 1.0, "top_k": 5, "seed": 11, **settings})
    return denoiser, denoiser.begin(canvases, [params] * len(canvases), mask_id=MASK, eos_ids=(EOS,), device="cpu")


def test_events_tell_new_changed_settled_masked_and_fixed_apart():
    denoiser, state = begin(StubModel(), [canvas(draft=[7, MASK, MASK, 8] * 5, fixed=(0,))], noise_start=0.5)
    before = state.answer[0].tolist()
    seen = set()
    for step in steps(denoiser, state):
        event = read_event(state, 0, step, 1.5)
        assert (event.index, event.step, event.steps, event.elapsed_ms) == (0, step, 6, 1.5)
        assert list(event.token_ids) == state.answer[0].tolist()
        assert event.is_last == (step == 5)
        for r, status in enumerate(event.status):
            now, then = event.token_ids[r], before[r]
            wanted = "masked" if now == MASK else "new" if then == MASK else "settled" if now == then else "changed"
            assert status == ("fixed" if r == 0 else wanted)
            assert now in (MASK, event.predicted_ids[r])
        seen |= set(event.status)
        before = list(event.token_ids)
    assert seen == {"fixed", "masked", "new", "settled", "changed"}


def test_a_row_that_is_done_sends_no_more_events():
    truth = [7] * 30
    denoiser, state = begin(OracleModel(truth), [canvas(2, 8), canvas(2, 20)], tokens_per_step=4)
    events = [[read_event(state, b, step, 0.0) for b in (0, 1)] for step in steps(denoiser, state)]
    assert [row[0] is not None for row in events] == [True] * 4 + [False] * 2
    assert [row[0].is_last for row in events[:4]] == [False] * 3 + [True]
    assert all(row[1] is not None for row in events)
    assert len(read_outcome(state, 0).token_ids) == 8
    assert read_outcome(state, 0).stopped_early and not read_outcome(state, 1).stopped_early
    assert (read_outcome(state, 0).steps, read_outcome(state, 1).steps) == (4, 6)


def test_run_reports_each_step_and_ends_when_all_rows_are_done():
    seen = []
    denoiser, state = begin(OracleModel([7] * 30), [canvas()], remasking="none")
    assert run(denoiser, state, seen.append) == 3
    assert seen == [0, 1, 2]


def test_the_loop_goes_on_where_it_was_left():
    denoiser, state = begin(StubModel(), [canvas()])
    loop = steps(denoiser, state)
    assert (next(loop), next(loop)) == (0, 1)
    loop.close()
    assert list(steps(denoiser, state)) == [2, 3, 4, 5]


@pytest.mark.parametrize("name", ["confidences", "step_map", "token_ids"])
def test_outcomes_cover_the_answer_of_their_own_row(name):
    denoiser, state = begin(StubModel(), [canvas(1, 5), canvas(3, 9)])
    run(denoiser, state)
    assert [len(getattr(read_outcome(state, b), name)) for b in (0, 1)] == [5, 9]
