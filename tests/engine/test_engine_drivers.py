"""The engine by every driver, with captures simulated: same answers, hot swaps of the adapter, warm-up, and memory planned ahead."""

from __future__ import annotations

import pytest
import torch
from test_engine import PROMPTS, adapter, base, requests  # noqa: F401 - two are fixtures

from lad_engine import Engine, GenerationResult, Prompt, SamplingParams, StepEvent, continuation, decoding
from lad_engine.config import AUTOREGRESSIVE_DEFAULTS
from lad_engine.contracts import ModelFacts, RopeFacts
from lad_engine.errors import AdapterError, CaptureError, ConfigError, DeviceMemoryError
from lad_engine.runtime.memory import plan_memory
from lad_engine.runtime.simulated_capture import SimulatedCapture
from tiny_adapter import write_adapter


@pytest.fixture(scope="module")
def engines(base, adapter):  # noqa: F811
    return {driver: Engine.load(base, adapter=adapter, dtype="float32", driver=driver) for driver in ("eager", "replay", "loop")}


def tokens(results):
    return [(result.token_ids, result.steps, result.nfe, result.stopped_early, result.step_map) for result in results]


def test_all_drivers_give_the_same_answers(engines):
    params = requests(engines["eager"])
    prompts = [PROMPTS[i % 3] for i in range(len(params))]
    answers = {driver: tokens(engine.generate(prompts, params)) for driver, engine in engines.items()}
    assert answers["eager"] == answers["replay"] == answers["loop"]
    assert {driver: engine.driver for driver, engine in engines.items()} == {driver: driver for driver in engines}


def test_streams_show_the_same_steps_by_every_driver(engines):
    def shown(engine):
        params = [engine.sampling("paper", max_new_tokens=9, steps=3 + 2 * i, early_stop=False, seed=i) for i in range(3)]
        items = list(engine.stream(PROMPTS, params))
        events = [
            (e.index, e.step, e.steps, e.token_ids, e.predicted_ids, e.status, e.is_last, e.text) for e in items if isinstance(e, StepEvent)
        ]
        return sorted(events), tokens(item for item in items if isinstance(item, GenerationResult))

    assert shown(engines["eager"]) == shown(engines["replay"]) == shown(engines["loop"])


def test_an_infill_and_a_draft_decode_the_same_by_every_driver(engines):
    prompts = [Prompt(text=PROMPTS[0], infill="the [[3]] is [[2]]."), Prompt(text=PROMPTS[1], draft="the sun is on the sea")]
    params = engines["eager"].sampling("paper", max_new_tokens=14, steps=5, noise_start=0.5, top_k=4)
    answers = [tokens(engine.generate(prompts, params)) for engine in engines.values()]
    assert answers[0] == answers[1] == answers[2]


def test_warm_up_captures_what_a_request_of_that_shape_needs(base, adapter):  # noqa: F811
    engine, told = Engine.load(base, adapter=adapter, driver="replay"), []
    params = engine.sampling("paper", max_new_tokens=8, steps=3)
    engine.warm_up(PROMPTS, params, progress=lambda *facts: told.append(facts))
    ready = list(engine._decoding.graphs.buckets)
    assert [bucket.rows for bucket in ready] == [4, 2, 1]
    assert told[0] == ("capturing the decode", 0, 3) and told[-1] == ("capturing the decode", 3, 3)
    engine.generate(PROMPTS[::-1], params.replace(seed=5, steps=4))
    assert engine._decoding.graphs.buckets == ready
    Engine.load(base, adapter=adapter, driver="eager").warm_up(PROMPTS, params)


def pointers(engine):
    return {name: tensor.data_ptr() for name, tensor in engine.model.transformer.slots().items()}


def weights(engine):
    return {name: tensor.clone() for name, tensor in engine.model.transformer.slots().items()}


@pytest.mark.parametrize("driver", ["replay", "loop"])
def test_an_adapter_is_swapped_in_the_same_storage_and_back_bit_for_bit(base, adapter, tmp_path, driver):  # noqa: F811
    other = write_adapter(base, tmp_path / "other.safetensors", name="other", predicts_next_token=True, seed=9)
    engine = Engine.load(base, adapter=adapter, driver=driver)
    params = engine.sampling("paper", max_new_tokens=12, steps=4)
    places, before, answers = pointers(engine), weights(engine), tokens(engine.generate(PROMPTS, params))
    captured = list(engine._decoding.graphs.buckets)
    for path, name in ((other, "other"), (None, None), (adapter, "tiny")):
        engine.swap_adapter(path)
        fresh = Engine.load(base, adapter=path, driver=driver)
        assert (engine.adapter_facts.name if engine.adapter_facts else None) == name
        assert engine.model.head.predicts_next_token == fresh.model.head.predicts_next_token
        assert tokens(engine.generate(PROMPTS, params)) == tokens(fresh.generate(PROMPTS, params))
        assert pointers(engine) == places
        assert all(torch.equal(tensor, weights(fresh)[slot]) for slot, tensor in weights(engine).items())
        if path is other:
            assert engine._decoding.graphs.buckets == captured
    assert all(torch.equal(tensor, before[slot]) for slot, tensor in weights(engine).items())
    assert tokens(engine.generate(PROMPTS, params)) == answers


def test_an_adapter_that_does_not_fit_is_refused_before_anything_is_touched(base, adapter, tmp_path):  # noqa: F811
    engine = Engine.load(base, adapter=adapter)
    before, facts = weights(engine), engine.adapter_facts
    foreign = write_adapter(base, tmp_path / "foreign.safetensors", base_fingerprint="0" * 64)
    for refused in (foreign, tmp_path / "missing.safetensors"):
        with pytest.raises(AdapterError):
            engine.swap_adapter(refused)
    assert all(torch.equal(tensor, before[slot]) for slot, tensor in weights(engine).items())
    assert engine.adapter_facts == facts
    with pytest.raises(AdapterError, match="beside the weights"):
        Engine.load(base, adapter=adapter, merge=False).swap_adapter(None)
    with pytest.raises(AdapterError, match="quantised"):
        Engine.load(base, adapter=adapter, precision="int8").swap_adapter(None)


def test_memory_is_planned_before_it_is_taken_and_a_batch_that_does_not_fit_names_what_to_reduce(base, adapter, monkeypatch):  # noqa: F811
    engine = Engine.load(base, adapter=adapter, driver="replay")
    params = engine.sampling("paper", max_new_tokens=50, steps=4)
    small, large = engine.memory_plan(PROMPTS[:1], params), engine.memory_plan(PROMPTS, params)
    transformer = engine.model.transformer
    assert small.weights == large.weights == sum(held.nbytes for held in (*transformer.parameters(), *transformer.buffers()))
    assert large.buffers > small.buffers and large.activations > small.activations
    assert "a batch of 4 x 128 positions: weights" in large.sentence()
    graphs = engine._decoding.graphs
    monkeypatch.setattr(graphs.backend, "free_bytes", lambda: 1000)
    with pytest.raises(DeviceMemoryError, match=r"the device has 0.0 MB free. Reduce the batch .*, the answer .* or the precision"):
        engine.generate(PROMPTS, params)
    assert graphs.buckets == []
    monkeypatch.undo()

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(graphs.backend, "capture", full)
    with pytest.raises(DeviceMemoryError, match="Reduce the batch"):
        engine.generate(PROMPTS, params)
    eager = Engine.load(base, adapter=adapter)
    monkeypatch.setattr(eager._decoding._denoiser, "step_", full)
    with pytest.raises(DeviceMemoryError, match="Reduce the batch"):
        eager.generate(PROMPTS, params)


def test_a_step_that_cannot_be_captured_is_an_error_where_the_driver_was_asked_for_by_name_and_a_note_where_not(base, adapter, caplog):  # noqa: F811
    def refuse(*_):
        raise CaptureError("capture: the step cannot be captured.")

    engine = Engine.load(base, adapter=adapter, driver="replay")
    engine._decoding.graphs.backend.capture = refuse
    params = engine.sampling("paper", max_new_tokens=8, steps=2)
    with pytest.raises(CaptureError):
        engine.generate(PROMPTS[0], params)
    object.__setattr__(engine._decoding._config, "driver", "auto")
    assert engine.generate(PROMPTS[0], params) and engine.driver == "eager"
    assert engine.generate(PROMPTS[0], params)
    assert [record.getMessage() for record in caplog.records] == ["decodes run eagerly: capture: the step cannot be captured."]


class RefusedLoop(SimulatedCapture):
    """What a GPU's driver may say to a WHILE node."""

    def loop(self, *_):
        raise CaptureError("decode loop: it cannot be built (CUDA error 801, operation not supported). Use --driver replay.")


def test_a_loop_that_cannot_be_built_is_an_error_where_it_was_asked_for_and_leaves_replays_where_not(base, adapter, caplog, monkeypatch):  # noqa: F811
    wanted = Engine.load(base, adapter=adapter).generate(PROMPTS, [SamplingParams(max_new_tokens=8, steps=3)] * len(PROMPTS))
    for module in (decoding, continuation):
        monkeypatch.setattr(module, "choose_driver", lambda _: ("loop", RefusedLoop()))
    engine = Engine.load(base, adapter=adapter)
    got = engine.generate(PROMPTS, [SamplingParams(max_new_tokens=8, steps=3)] * len(PROMPTS))
    assert [one.token_ids for one in got] == [one.token_ids for one in wanted] and engine.driver == "replay"
    engine.generate(PROMPTS[0], SamplingParams(max_new_tokens=8, steps=3))
    (note,) = caplog.records
    assert note.getMessage().startswith("decodes are replayed step by step: decode loop: it cannot be built (CUDA error 801")
    plain = Engine.load(base, adapter=None, mask_token=None)
    plain.generate_autoregressive(PROMPTS[0], SamplingParams(max_new_tokens=3, **AUTOREGRESSIVE_DEFAULTS))
    assert plain._continuation.driver == "replay"
    with pytest.raises(CaptureError, match="801"):
        Engine.load(base, adapter=adapter, driver="loop").generate(PROMPTS[0], SamplingParams(max_new_tokens=8, steps=3))


def test_a_driver_that_is_not_one_is_refused(base):  # noqa: F811
    with pytest.raises(ConfigError, match="driver is 'fast', expected one of auto, eager, replay, loop"):
        Engine.load(base, adapter=None, driver="fast")


def test_an_8b_batch_of_eight_stays_within_three_gigabytes_beside_the_weights():
    facts = ModelFacts("llama", 4096, 14336, 32, 32, 8, 128, 128256, 131072, 1e-5, RopeFacts(), False, False, 1, (2,))
    plan = plan_memory(facts, rows=8, positions=2048, answers=1024, item_bytes=2, weights=0, buffers=10**7)
    assert 1e9 < plan.needed < 3e9
