"""Masked decoding keeps the step contract: static, in place, a no-op for rows that are done, and blind to its batch-mates."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from masked_stub import EOS, SureModel, begin
from step_guard import guarded
from stub_model import MASK, OPS, canvas

from lad_engine.config import SamplingParams
from lad_engine.denoisers.masked import MaskedDenoiser
from lad_engine.denoisers.masked_bucket import MaskedBuckets
from lad_engine.runtime.drivers import CapturedDecode
from lad_engine.runtime.graphs import Graphs
from lad_engine.runtime.readout import read_outcome
from lad_engine.runtime.runner import run
from lad_engine.runtime.simulated_capture import SimulatedCapture

SAMPLED = {"temperature": 1.1, "top_k": 6}
OPTION_SETS = {
    "random": {"reveal": "random", **SAMPLED},
    "random_nucleus": {"reveal": "random", "temperature": 0.9, "top_k": 0, "top_p": 0.9, "confidence": "kept"},
    "random_all_passes": {"reveal": "random", "early_stop": False, **SAMPLED},
    "origin": {"reveal": "origin", **SAMPLED},
    "confidence": {"reveal": "confidence", "top_k": 1},
    "maskgit_plus": {"reveal": "maskgit_plus", **SAMPLED},
    "maskgit_noise": {"reveal": "maskgit_plus", "reveal_temperature": 0.7, **SAMPLED},
    "topk_margin": {"reveal": "topk_margin", "confidence": "kept", **SAMPLED},
    "entropy": {"reveal": "entropy", "temperature": 0.0, "top_k": 1},
    "transfer": {"reveal": "transfer", "temperature": 0.0, "top_k": 1},
    "blocks": {"reveal": "transfer", "block_length": 5, **SAMPLED},
    "by_draw": {"reveal": "transfer", "selection": "random", **SAMPLED},
    "threshold": {"reveal": "transfer", "block_length": 6, "threshold": 0.3, "top_k": 1},
    "factor": {"reveal": "transfer", "factor": 2.0, "top_k": 1},
    "late_eos": {"reveal": "transfer", "eos_treatment": "low_confidence", "eos_bias": -3.0, **SAMPLED},
    "guided": {"reveal": "transfer", "cfg_scale": 1.5, "top_k": 1},
}


def params_of(name, **changes):
    return SamplingParams(**{"max_new_tokens": 12, "steps": 7, "seed": 987654321012, **OPTION_SETS[name], **changes})


def tensors(state):
    out = {}
    for name, value in vars(state).items():
        parts = vars(value) if dataclasses.is_dataclass(value) else {"": value}
        out.update({f"{name}.{key}": part for key, part in parts.items() if isinstance(part, torch.Tensor)})
    return out


@pytest.mark.parametrize("name", OPTION_SETS)
def test_a_step_reads_nothing_on_the_host_and_grows_nothing(name):
    params = params_of(name)
    denoiser, state = begin(SureModel(), [canvas(), canvas(2, 9)], [params, params])
    pointers = {key: value.data_ptr() for key, value in tensors(state).items()}
    calls = set()
    for _ in range(state.max_steps):
        with guarded() as guard:
            denoiser.step_(state)
        calls.add(guard.calls)
    assert len(calls) == 1
    assert pointers == {key: value.data_ptr() for key, value in tensors(state).items()}
    assert bool(state.done.all()) and MASK not in state.answer[0].tolist()


@pytest.mark.parametrize("name", ["random", "confidence", "threshold", "entropy"])
def test_steps_after_the_end_change_nothing(name):
    denoiser, state = begin(SureModel(), [canvas(), canvas()], [params_of(name, steps=4), params_of("random_all_passes", steps=9)])
    for _ in range(4):
        denoiser.step_(state)
    assert state.done.tolist()[0]
    end = {key: value.clone() for key, value in tensors(state).items()}
    for _ in range(6):
        denoiser.step_(state)
    for key, value in tensors(state).items():
        if key not in ("acted.", "step.") and value.dim() and value.shape[0] == 2:
            assert torch.equal(value[0], end[key][0]), key


def test_a_mixed_batch_gives_each_request_the_states_it_has_alone():
    names = list(OPTION_SETS)
    requests = [canvas(2 + i % 5, 8 + i % 6, fixed=(1, 4) if i % 3 == 0 else ()) for i in range(len(names))]
    params = [params_of(name, max_new_tokens=8 + i % 6, steps=5 + i % 3, seed=i * 7919) for i, name in enumerate(names)]
    denoiser, together = begin(SureModel(), requests, params)
    alone = [begin(SureModel(), [one], [rule])[1] for one, rule in zip(requests, params, strict=True)]
    for _ in range(together.max_steps):
        denoiser.step_(together)
        for b, state in enumerate(alone):
            denoiser.step_(state)
            A = requests[b].answer_length
            for buffer in ("answer", "predicted", "confidence", "first_set", "last_changed"):
                assert torch.equal(getattr(together, buffer)[b, :A], getattr(state, buffer)[0]), (names[b], buffer)
            for buffer in ("done", "nfe", "row_steps", "stopped_early"):
                assert torch.equal(getattr(together, buffer)[b], getattr(state, buffer)[0]), (names[b], buffer)
            assert torch.equal(together.ids[b, : requests[b].length], state.ids[0])


@pytest.mark.parametrize("has_loop", [False, True], ids=["replay", "loop"])
def test_captured_steps_give_the_tokens_of_the_eager_loop(has_loop):
    names = list(OPTION_SETS)
    model = SureModel()
    denoiser = MaskedDenoiser(model, OPS)
    graphs = Graphs(denoiser, MaskedBuckets(512), SimulatedCapture(), has_loop=has_loop)
    for group in (names[:1], names[:4], names[4:9], names[9:], names[2:7]):
        requests = [canvas(2 + i, 8 + 3 * i) for i in range(len(group))]
        params = [params_of(name, max_new_tokens=8 + 3 * i, steps=4 + i, seed=i) for i, name in enumerate(group)]
        _, eager = begin(model, requests, params)
        run(denoiser, eager)
        _, host = begin(model, requests, params)
        with CapturedDecode(graphs, host, wants_loop=has_loop) as decode:
            for _ in decode.frames(wants_events=not has_loop):
                pass
            for index in range(len(group)):
                assert decode.outcome(index) == read_outcome(eager, index), group[index]


def test_a_bucket_is_captured_once_and_holds_every_batch_of_its_shape():
    denoiser = MaskedDenoiser(SureModel(), OPS)
    graphs = Graphs(denoiser, MaskedBuckets(512), SimulatedCapture())
    for seed in range(3):
        host = denoiser.begin([canvas(3, 12)], [params_of("random", seed=seed)], mask_id=MASK, eos_ids=(EOS,), device="cpu")
        with CapturedDecode(graphs, host) as decode:
            list(decode.frames())
    assert len(graphs.buckets) == 1
