"""The baseline by every driver: the same tokens, captured once per bucket, on a cache that stays where it is; captures are simulated."""

from __future__ import annotations

import pytest
import torch
from step_guard import guarded

from lad_engine import Engine, SamplingParams
from lad_engine.config import AUTOREGRESSIVE_DEFAULTS
from lad_engine.denoisers.autoregressive import AutoregressiveDecoder
from lad_engine.denoisers.autoregressive_bucket import AutoregressiveBuckets, cache_bytes
from lad_engine.errors import DeviceMemoryError
from lad_engine.model.causal_model import CausalModel
from lad_engine.model.transformer import Transformer
from lad_engine.model.weights import open_checkpoint
from lad_engine.ops import select_ops
from lad_engine.runtime.drivers import CapturedDecode
from lad_engine.runtime.graphs import Graphs
from lad_engine.runtime.runner import EagerDecode
from lad_engine.runtime.simulated_capture import SimulatedCapture
from tiny_checkpoint import make_tiny

PROMPTS = [list(range(5, 25)), list(range(40, 47)), [9]]
STOP_IDS = (2,)


def params(count: int, **settings) -> SamplingParams:
    return SamplingParams(max_new_tokens=count, **{**AUTOREGRESSIVE_DEFAULTS, **settings})


EACH = [params(12), params(7, seed=8, temperature=0.9, top_k=20), params(15, seed=9, temperature=1.1, top_p=0.9)]


@pytest.fixture(scope="module", params=[True, False], ids=["each alone", "padded batch"])
def decoder(request, tmp_path_factory) -> AutoregressiveDecoder:
    folder = tmp_path_factory.mktemp("base")
    make_tiny(folder, family="llama")
    checkpoint, ops = open_checkpoint(folder), select_ops()
    return AutoregressiveDecoder(CausalModel(Transformer.from_tensors(checkpoint.facts, checkpoint.tensors(), ops), request.param), ops)


def graphs_of(decoder) -> Graphs:
    return Graphs(decoder, AutoregressiveBuckets(512), SimulatedCapture(), has_loop=True)


@torch.inference_mode()
def replayed(graphs, decoder, prompts, each, wants_loop=False):
    with CapturedDecode(graphs, decoder.lay_out(prompts, each, stop_ids=STOP_IDS, device="cpu"), wants_loop) as decode:
        list(decode.frames())
        return [decode.outcome(row) for row in range(decode.requests)]


@torch.inference_mode()
def stepped(decoder, prompts, each):
    decode = EagerDecode(decoder, decoder.begin(prompts, each, stop_ids=STOP_IDS, device="cpu"))
    list(decode.frames())
    return [decode.outcome(row) for row in range(len(prompts))]


def facts(outcomes) -> list[tuple]:
    return [(one.token_ids, one.step_map, one.nfe, one.steps, one.stopped_early) for one in outcomes]


def test_all_drivers_give_the_same_tokens_and_passes(decoder):
    graphs, wanted = graphs_of(decoder), stepped(decoder, PROMPTS, EACH)
    for wants_loop in (False, True):
        got = replayed(graphs, decoder, PROMPTS, EACH, wants_loop)
        assert facts(got) == facts(wanted)
        for one, other in zip(got, wanted, strict=True):
            assert one.confidences == pytest.approx(other.confidences, abs=1e-5)
    assert len(graphs.buckets) == 1


def test_a_bucket_serves_other_requests_on_the_cache_it_has(decoder):
    graphs = graphs_of(decoder)
    first = replayed(graphs, decoder, PROMPTS, EACH)
    (captured,) = graphs._all
    cache = captured.state.cache
    at, size = cache.keys.data_ptr(), cache.keys.nbytes + cache.values.nbytes
    assert size == cache_bytes(captured.bucket, decoder.model.transformer.facts, cache.keys.element_size())
    others = [params(9, seed=31, temperature=1.3, top_p=0.8), params(5, seed=3, temperature=0.7, top_k=9), params(3)]
    prompts = [[4, 17], list(range(60, 100)), list(range(9, 12))]
    assert facts(replayed(graphs, decoder, prompts, others, wants_loop=True)) == facts(stepped(decoder, prompts, others))
    assert replayed(graphs, decoder, PROMPTS, EACH) == first
    assert graphs._all == [captured] and captured.state.cache.keys.data_ptr() == at


@torch.inference_mode()
def test_a_captured_step_reads_nothing_on_the_host(decoder):
    with CapturedDecode(graphs_of(decoder), decoder.lay_out(PROMPTS, EACH, stop_ids=STOP_IDS, device="cpu")) as decode:
        # Three requests in a bucket of four: the last row was done from the start.
        assert decode._current.state.done.tolist() == [False, False, False, True]
        with guarded() as guard:
            decoder.step_(decode._current.state)
        assert guard.calls > 20


def test_an_answer_of_one_token_ends_with_its_prompt(decoder):
    one = [params(1)] * 2
    graphs = graphs_of(decoder)
    for wants_loop in (False, True):
        outcomes = replayed(graphs, decoder, PROMPTS[:2], one, wants_loop)
        assert facts(outcomes) == facts(stepped(decoder, PROMPTS[:2], one))
        assert [outcome.nfe for outcome in outcomes] == [1, 1]


@torch.inference_mode()
def test_rows_that_cannot_move_stay_where_another_bucket_like_theirs_is_free(decoder):
    graphs = graphs_of(decoder)
    begun = [decoder.lay_out(PROMPTS, EACH, stop_ids=STOP_IDS, device="cpu") for _ in range(2)]
    graphs.release(graphs.lease(begun[0]))
    (captured,) = graphs._all
    graphs.lease(begun[0])
    graphs.release(graphs.lease(begun[1]))
    assert len(graphs.buckets) == 2 and not graphs.has_smaller(captured)


@torch.inference_mode()
def test_a_bucket_whose_prompts_could_not_be_read_is_given_back(decoder, monkeypatch):
    graphs, wanted = graphs_of(decoder), stepped(decoder, PROMPTS, EACH)
    with monkeypatch.context() as patch:
        patch.setattr(decoder, "prime_", full_memory)
        for _ in range(2):
            with pytest.raises(torch.OutOfMemoryError):
                replayed(graphs, decoder, PROMPTS, EACH)
    assert facts(replayed(graphs, decoder, PROMPTS, EACH)) == facts(wanted)
    assert len(graphs.buckets) == 1


@pytest.mark.parametrize("driver", ["eager", "replay", "loop"])
def test_memory_that_runs_out_over_the_prompts_is_one_sentence(tmp_path, monkeypatch, driver):
    engine = Engine.load(make_tiny(tmp_path, family="llama", tie=True), adapter=None, mask_token=None, driver=driver)
    monkeypatch.setattr(AutoregressiveDecoder, "prime_", full_memory)
    with pytest.raises(DeviceMemoryError, match=r"memory: a batch of 1 x 128 positions needs about .* Reduce the batch"):
        engine.generate_autoregressive("the user is there", params(12))


def full_memory(*_) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory.")


def test_an_engine_continues_by_the_driver_it_was_loaded_with(tmp_path):
    base = make_tiny(tmp_path, family="llama", tie=True)
    prompts = ["the user is there", "an answer", "the sea and the sun are on the way in"]
    answers = {}
    for driver in ("eager", "replay", "loop"):
        engine = Engine.load(base, adapter=None, mask_token=None, driver=driver)
        answers[driver] = [(one.text, one.token_ids, one.nfe, one.finish_reason) for one in engine.generate_autoregressive(prompts, EACH)]
        graphs = engine._continuation.graphs
        assert (graphs is None) == (driver == "eager")
        word = engine.codec.decode(list(answers[driver][0][1][3:5]))
        stopped = engine.generate_autoregressive(prompts[0], EACH[0].replace(stop=word))[0]
        assert stopped.finish_reason == "stop" and stopped.nfe <= 5
        if graphs is not None:
            # Once per bucket; a stop word is looked for between eager steps.
            engine.generate_autoregressive(prompts, EACH)
            assert [bucket.rows for bucket in graphs.buckets] == [4]
            plan = engine._continuation.plan_bucket(graphs.buckets[0], 0)
            assert plan.buffers > 0 and plan.weights > 0
    assert answers["eager"] == answers["replay"] == answers["loop"]
