"""Eager, replayed and looped decoding give the same tokens, stop at the same step, and never move a buffer; captures are simulated."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from option_sets import OPTION_SETS, params_of
from step_guard import guarded
from stub_model import EOS, MASK, OPS, OracleModel, StubModel, canvas

from lad_engine.denoisers.lad import LadDenoiser
from lad_engine.denoisers.lad_bucket import LadBuckets, axes_of, padded_length, paths
from lad_engine.errors import DeviceMemoryError
from lad_engine.runtime.drivers import CapturedDecode
from lad_engine.runtime.graphs import STEPS_IN_FLIGHT, Graphs
from lad_engine.runtime.readout import read_event
from lad_engine.runtime.runner import EagerDecode
from lad_engine.runtime.simulated_capture import SimulatedCapture


def begin(denoiser, canvases, params):
    return denoiser.begin(canvases, params, mask_id=MASK, eos_ids=(EOS,), device="cpu")


def graphs_of(model, has_loop=True) -> Graphs:
    return Graphs(LadDenoiser(model, OPS), LadBuckets(4096), SimulatedCapture(), has_loop=has_loop)


def decode(how, wants_events=False):
    """Run a decode to its end; returns (outcomes by row, events by row, steps shown)."""
    with how as decoding:
        events, steps = {}, 0
        for frame in decoding.frames(wants_events):
            steps = frame.step + 1
            for row, slot in frame.rows:
                event = read_event(frame.view, slot, frame.step, 0.0)
                if event is not None:
                    facts = (event.step, event.steps, event.token_ids, event.predicted_ids, event.confidences, event.status, event.is_last)
                    events.setdefault(row, []).append(facts)
        rows = how._state.ids.shape[0]
        return [decoding.outcome(row) for row in range(rows)], events, steps


def batch_of(name):
    """Two requests of one option set that share nothing else: lengths, steps, seeds, and the second one is an infill."""
    infill = canvas(draft=[7, MASK, 8, 12, EOS, 10, MASK, MASK, 6], fixed=(0, 3, 8))
    share = {} if OPTION_SETS[name]["remasking"] in ("none", "transfer") else {"noise_start": 0.7}
    return [canvas(2, 12), infill], [params_of(name, seed=5), params_of(name, seed=77, steps=6, max_new_tokens=9, **share)]


@pytest.mark.parametrize("name", OPTION_SETS)
def test_all_drivers_give_the_same_tokens_and_a_captured_step_reads_nothing_on_the_host(name):
    model = StubModel()
    denoiser, graphs = LadDenoiser(model, OPS), graphs_of(model)
    eager = decode(EagerDecode(denoiser, begin(denoiser, *batch_of(name))), wants_events=True)
    with CapturedDecode(graphs, begin(denoiser, *batch_of(name))) as unread, guarded() as guard:
        denoiser.step_(unread._current.state)
    assert guard.calls > 20
    replayed = decode(CapturedDecode(graphs, begin(denoiser, *batch_of(name))), wants_events=True)
    looped = decode(CapturedDecode(graphs, begin(denoiser, *batch_of(name)), wants_loop=True))
    unseen = decode(CapturedDecode(graphs, begin(denoiser, *batch_of(name))))
    assert eager[0] == replayed[0] == looped[0] == unseen[0]
    assert eager[1] == replayed[1] and replayed[2] == eager[2]


def test_a_bucket_is_captured_once_and_serves_requests_that_differ_in_everything_but_its_shape():
    model = StubModel()
    denoiser, graphs = LadDenoiser(model, OPS), graphs_of(model)
    requests = [(canvas(4 + i, 10 + i), params_of("random", seed=i, steps=4 + 2 * i, temperature=0.5 + i, top_k=5 + i)) for i in range(5)]
    for request, params in requests:
        expected = decode(EagerDecode(denoiser, begin(denoiser, [request], [params])))[0]
        assert decode(CapturedDecode(graphs, begin(denoiser, [request], [params])))[0] == expected
    assert len(graphs.buckets) == 1
    graph = graphs._all[0]._graph
    assert graph.replays > 10 and graph.allocations[0] > 0


def test_a_buffer_that_moves_or_an_allocation_that_comes_and_goes_is_seen():
    backend = SimulatedCapture()

    @dataclasses.dataclass
    class Counter:
        value: torch.Tensor

    state, calls = Counter(torch.zeros(3)), []
    graph = backend.capture(lambda: state.value.add_(1), state)
    graph.replay()
    assert graph.allocations == (0, 0)

    def grows():
        calls.append(0)
        return [state.value + 1 for _ in calls]

    with pytest.raises(AssertionError, match="allocations"):
        backend.capture(grows, state).replay()

    def moves():
        state.value = state.value.clone()

    with pytest.raises(AssertionError, match="a buffer moved"):
        backend.capture(moves, state).replay()


@pytest.mark.parametrize("wants_loop", [False, True], ids=["replay", "loop"])
@pytest.mark.parametrize("wants_events", [False, True], ids=["flags", "events"])
def test_rows_move_to_a_smaller_bucket_when_half_are_done_and_keep_their_tokens(wants_loop, wants_events):
    model = StubModel()
    denoiser, graphs = LadDenoiser(model, OPS), graphs_of(model)
    names = ["random", "window", "weighted_split", "retain_locked", "guided"]
    steps = [3, 13, 5, 8, 4]
    canvases = [canvas(2 + i, 9 + i) for i in range(5)]

    def state():
        params = [params_of(name, max_new_tokens=9 + i, steps=steps[i], early_stop=False, seed=i) for i, name in enumerate(names)]
        return begin(denoiser, canvases, params)

    eager = decode(EagerDecode(denoiser, state()), wants_events)
    captured = CapturedDecode(graphs, state(), wants_loop)
    with captured as decoding:
        for _ in decoding.frames():
            pass
        # A replay takes the steps in flight along, in which two more rows end.
        assert [one.rows for one in decoding._leased] == ([8, 4, 2, 1] if wants_loop else [8, 2, 1])
    result = decode(CapturedDecode(graphs, state(), wants_loop), wants_events)
    assert result[0] == eager[0]
    assert result[1] == eager[1]
    assert all(bucket.rows in (8, 4, 2, 1) for bucket in graphs.buckets) and len(graphs.buckets) == 4


def test_a_smaller_bucket_that_does_not_fit_is_done_without_and_asked_for_once():
    captures = []

    class Full(SimulatedCapture):
        def capture(self, step, state):
            captures.append(len(state.done))
            if len(state.done) == 2:
                raise DeviceMemoryError("memory: it is full.")
            return super().capture(step, state)

    denoiser = LadDenoiser(StubModel(), OPS)
    graphs = Graphs(denoiser, LadBuckets(4096), Full(), has_loop=True)

    def state(rows):
        return begin(denoiser, [canvas(4 + i, 12) for i in range(rows)], [params_of("random", steps=3 + 4 * i) for i in range(rows)])

    wanted = decode(EagerDecode(denoiser, state(4)))[0]
    for wants_loop in (False, True):
        assert decode(CapturedDecode(graphs, state(4), wants_loop))[0] == wanted
    assert captures == [4, 2, 1]
    with pytest.raises(DeviceMemoryError):
        decode(CapturedDecode(graphs, state(2)))


def test_replay_runs_ahead_of_the_flags_by_the_steps_in_flight_and_no_further():
    truth = [7] * 30
    model = OracleModel(truth)
    denoiser, graphs = LadDenoiser(model, OPS), graphs_of(model)
    state = begin(denoiser, [canvas()], [params_of("random", steps=40)])
    with CapturedDecode(graphs, state) as decoding:
        frames = list(decoding.frames())
        assert len(frames) == 3 == decoding.outcome(0).steps
        assert decoding.outcome(0).stopped_early
        assert decoding.steps_enqueued == 3 + STEPS_IN_FLIGHT - 1


def test_two_decodes_at_once_do_not_share_buffers():
    model = StubModel()
    denoiser, graphs = LadDenoiser(model, OPS), graphs_of(model)
    requests = [([canvas(4, 12)], [params_of("random", seed=seed, early_stop=False)]) for seed in (1, 2)]
    expected = [decode(EagerDecode(denoiser, begin(denoiser, *one)))[0] for one in requests]
    with CapturedDecode(graphs, begin(denoiser, *requests[0])) as first, CapturedDecode(graphs, begin(denoiser, *requests[1])) as second:
        for _ in zip(first.frames(), second.frames(), strict=True):
            pass
        assert [[first.outcome(0)], [second.outcome(0)]] == expected
    assert len(graphs.buckets) == 2
    with CapturedDecode(graphs, begin(denoiser, *requests[0])) as left_early:
        next(left_early.frames())
    assert decode(CapturedDecode(graphs, begin(denoiser, *requests[1])))[0] == expected[1]
    assert len(graphs.buckets) == 2


def test_rows_beyond_the_batch_are_done_from_the_start():
    model = StubModel()
    denoiser, graphs = LadDenoiser(model, OPS), graphs_of(model)
    with CapturedDecode(graphs, begin(denoiser, [canvas()] * 3, [params_of("random")] * 3)) as decoding:
        assert decoding._current.state.done.tolist() == [False] * 3 + [True]
        for _ in decoding.frames():
            pass
        states = [one.state for one in decoding._leased]
    assert states[0].nfe.tolist()[3] == 0 and not states[0].acted[3]


def test_buckets_round_up_and_keep_apart_what_is_baked_in():
    denoiser, buckets = LadDenoiser(StubModel(), OPS), LadBuckets(1000)

    def bucket(*names, length=12, prompt=4, **changes):
        params = [params_of(name, max_new_tokens=length, **changes) for name in names]
        return buckets.bucket_of(begin(denoiser, [canvas(prompt, length)] * len(names), params))

    plain = bucket("random")
    assert (plain.rows, plain.positions, plain.answers, plain.steps, plain.max_top_k) == (1, 128, 64, 16, 16)
    assert plain == bucket("random", length=60, seed=5, top_k=9, temperature=3.0, steps=11, early_stop=False)
    assert bucket("random", "random", "random").rows == 4
    assert bucket("random", steps=17).steps == 32
    assert (bucket("random", length=200, prompt=700).positions, bucket("random", length=200, prompt=700).answers) == (1000, 256)
    assert bucket("guided").is_guided and bucket("unfiltered").samples_all and bucket("nucleus").max_top_k == 0
    assert len({plain, bucket("weighted"), bucket("guided"), bucket("unfiltered"), bucket("suppressed"), bucket("greedy")}) == 6
    assert [padded_length(n) for n in (1, 128, 129, 512, 513, 769)] == [128, 128, 256, 512, 768, 1024]


def test_every_buffer_of_a_state_has_its_axes_and_a_blank():
    state = begin(LadDenoiser(StubModel(), OPS), [canvas(), canvas()], [params_of("random")] * 2)
    buckets = LadBuckets(1000)
    blank = buckets.blank(buckets.bucket_of(state), state)
    for path in paths(state):
        owner, _, name = path.rpartition(".")
        part, like = (getattr(one, owner) if owner else one for one in (blank, state))
        assert getattr(part, name).dim() == getattr(like, name).dim() == len(axes_of(path)), path
    assert blank.done.all() and blank.is_static
