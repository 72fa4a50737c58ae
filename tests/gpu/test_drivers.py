"""Captured on a GPU: the three drivers give the same tokens and stop at the same step, and a hot swap keeps the graphs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from option_sets import OPTION_SETS, params_of
from stub_model import EOS, MASK, canvas

from lad_engine import Engine, GenerationResult, StepEvent
from lad_engine.denoisers.lad import LadDenoiser
from lad_engine.denoisers.lad_bucket import LadBuckets
from lad_engine.errors import CaptureError
from lad_engine.model.language_model import LanguageModel
from lad_engine.model.transformer import Transformer
from lad_engine.model.weights import open_checkpoint
from lad_engine.ops import select_ops
from lad_engine.runtime.cuda_capture import CudaCapture
from lad_engine.runtime.decode_loop import LoopLibrary, build_library
from lad_engine.runtime.drivers import CapturedDecode
from lad_engine.runtime.graphs import Graphs
from lad_engine.runtime.readout import read_event
from tiny_adapter import write_adapter
from tiny_checkpoint import make_tiny

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("base"), family="llama")


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> LoopLibrary:
    try:
        return build_library(tmp_path_factory.mktemp("extensions"), torch.cuda.get_device_capability())
    except CaptureError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def denoisers(base) -> tuple[LadDenoiser, LadDenoiser]:
    """The model on the GPU, and a denoiser that lays requests out on the host."""
    checkpoint, ops = open_checkpoint(base), select_ops("auto", device="cuda")
    model = LanguageModel(Transformer.from_tensors(checkpoint.facts, checkpoint.tensors(), ops, torch.float32, "cuda"), False)
    return LadDenoiser(model, ops), LadDenoiser(model, select_ops("reference"))


def begin(denoiser: LadDenoiser, name: str, **changes):
    canvases = [canvas(3 + 4 * i, 12 - 3 * i) for i in range(3)]
    share = {"steps": 9, "early_stop": True, **changes}
    params = [
        params_of(name, seed=31 * i, max_new_tokens=one.answer_length, **{**share, "steps": share["steps"] - 2 * i})
        for i, one in enumerate(canvases)
    ]
    return denoiser.begin(canvases, params, mask_id=MASK, eos_ids=(EOS,), device="cpu")


def decode(graphs: Graphs, state, wants_loop: bool = False, wants_events: bool = False):
    with CapturedDecode(graphs, state, wants_loop) as decoding:
        events = []
        for frame in decoding.frames(wants_events):
            for row, slot in frame.rows:
                event = read_event(frame.view, slot, frame.step, 0.0)
                if event is not None:
                    events.append((row, event.step, event.token_ids, event.predicted_ids, event.confidences, event.is_last))
        return [decoding.outcome(row) for row in range(3)], events


class CalledSteps:
    """The same buckets without graphs: each replay calls the step, in order with the copies of `CudaCapture`."""

    def __init__(self, backend: CudaCapture) -> None:
        self._backend = backend

    def __getattr__(self, name):
        return getattr(self._backend, name)

    def capture(self, step, state):
        return type("Called", (), {"replay": staticmethod(step)})


@pytest.mark.parametrize("name", OPTION_SETS)
@torch.inference_mode()
def test_all_drivers_give_the_same_tokens(denoisers, library, name):
    denoiser, host = denoisers
    called = Graphs(denoiser, LadBuckets(512), CalledSteps(CudaCapture("cuda")))
    captured = Graphs(denoiser, LadBuckets(512), CudaCapture("cuda", library), has_loop=True)
    wanted, shown = decode(called, begin(host, name), wants_events=True)
    replayed, replayed_events = decode(captured, begin(host, name), wants_events=True)
    assert replayed == wanted and replayed_events == shown
    assert decode(captured, begin(host, name))[0] == wanted
    assert decode(captured, begin(host, name), wants_loop=True)[0] == wanted
    # Another request through the same graphs, then the first again.
    other = decode(captured, begin(host, name, steps=8))[0]
    assert decode(captured, begin(host, name, steps=8), wants_loop=True)[0] == other
    assert decode(captured, begin(host, name), wants_loop=True)[0] == wanted


@torch.inference_mode()
def test_the_loop_stops_at_the_step_the_flags_say(denoisers, library):
    denoiser, host = denoisers
    graphs = Graphs(denoiser, LadBuckets(512), CudaCapture("cuda", library), has_loop=True)
    state = begin(host, "noise_free", steps=40)
    with CapturedDecode(graphs, state, wants_loop=True) as decoding:
        list(decoding.frames())
        outcomes = [decoding.outcome(row) for row in range(3)]
        taken = [int(captured.state.step) for captured in decoding._leased]
    assert all(outcome.stopped_early for outcome in outcomes)
    assert max(outcome.steps for outcome in outcomes) == taken[-1] < 40


@torch.inference_mode()
def test_rows_move_to_a_smaller_bucket_and_keep_their_tokens(denoisers, library):
    denoiser, host = denoisers
    graphs = Graphs(denoiser, LadBuckets(512), CudaCapture("cuda", library), has_loop=True)
    names, steps = ["random", "window", "weighted_split", "retain_locked", "bernoulli"], [3, 17, 5, 12, 4]

    def state(rows):
        params = [params_of(names[i], steps=steps[i], early_stop=False, seed=i) for i in rows]
        return host.begin([canvas(2 + i, 12) for i in rows], params, mask_id=MASK, eos_ids=(EOS,), device="cpu")

    results = []
    for wants_loop in (False, True):
        with CapturedDecode(graphs, state(range(5)), wants_loop) as decoding:
            list(decoding.frames())
            # How far the flags were behind decides through which sizes.
            assert (decoding._leased[0].rows, decoding._leased[-1].rows) == (8, 1)
            results.append([decoding.outcome(row) for row in range(5)])
    assert results[0] == results[1]
    for row in range(5):
        with CapturedDecode(graphs, state([row])) as alone:
            list(alone.frames())
            assert alone.outcome(0).token_ids == results[0][row].token_ids


def test_a_step_that_reads_on_the_host_is_refused_and_leaves_the_stream_as_it_was():
    backend, x, before = CudaCapture("cuda"), torch.ones((), device="cuda"), torch.cuda.current_stream()
    with pytest.raises(CaptureError, match="the step cannot be captured"):
        backend.capture(lambda: x.item(), None)
    assert torch.cuda.current_stream() == before
    assert float(x + 1) == 2


def test_an_engine_gives_the_same_answers_by_every_driver_and_swaps_adapters_in_place(base, tmp_path, library):
    first = write_adapter(base, tmp_path / "first.safetensors")
    second = write_adapter(base, tmp_path / "second.safetensors", seed=9)
    prompts = ["the user is there", "an answer", "the sea and the sun are on the way in"]
    answers = {}
    for driver in ("replay", "loop"):
        engine = Engine.load(base, adapter=first, device="cuda", dtype="float32", driver=driver)
        params = engine.sampling("paper", max_new_tokens=12, steps=5, top_k=4)
        plan = engine.memory_plan(prompts, params)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        own = [result.token_ids for result in engine.generate(prompts, params)]
        # The smaller buckets that a batch shrinks to have buffers of their own.
        assert torch.cuda.max_memory_allocated() - before <= plan.needed + engine._decoding.graphs.buffer_bytes
        captured = list(engine._decoding.graphs.buckets)
        weights = {name: tensor.clone() for name, tensor in engine.model.transformer.slots().items()}
        engine.swap_adapter(second)
        swapped = [result.token_ids for result in engine.generate(prompts, params)]
        engine.swap_adapter(first)
        assert all(torch.equal(tensor, weights[name]) for name, tensor in engine.model.transformer.slots().items())
        assert [result.token_ids for result in engine.generate(prompts, params)] == own != swapped
        assert engine._decoding.graphs.buckets == captured
        items = list(engine.stream(prompts, params))
        assert [item.token_ids for item in items if isinstance(item, GenerationResult)] == own
        assert any(isinstance(item, StepEvent) for item in items)
        answers[driver] = (own, swapped)
    assert answers["replay"] == answers["loop"]
