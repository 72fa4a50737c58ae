"""What is planned is what is allocated: buffers and caches to the byte, activations as a bound on traces of the GPU's own backends."""

from __future__ import annotations

import dataclasses

import bench_on_path  # noqa: F401 - its import is its effect
import pytest
import torch
from gpu_on_meta import Trace, captured, continued
from option_sets import params_of
from stub_model import EOS, MASK, OPS, StubModel, canvas

from bench.random_model import MODELS
from lad_engine.config import SamplingParams
from lad_engine.denoisers.lad import LadDenoiser
from lad_engine.denoisers.lad_bucket import LadBuckets
from lad_engine.kernels.lm_head import triton_kernel as head_kernel
from lad_engine.kernels.quantised_linear import library_kernel as product
from lad_engine.model.latent_facts import LatentFacts
from lad_engine.runtime import memory
from lad_engine.runtime.graphs import Graphs
from lad_engine.runtime.memory import MemoryPlan
from lad_engine.runtime.simulated_capture import SimulatedCapture

SMALL, LARGE = MODELS["Llama-3.2-1B"], MODELS["Llama-3.1-8B"]
LATENT = LatentFacts(classes=3).to_extra()
TOP_3, NUCLEUS = {"top_k": 3}, {"top_k": 0, "top_p": 0.9}
MIDPOINT = {"solver": "midpoint", "steps": 4, "top_k": 0}
# family, facts, rows, prompt, answer, precision, settings, and by how much the plan may exceed the trace (None: it is small beside what a
# plan always allows for)
TRACED = {
    "8B long": ("lad", LARGE, 8, 1792, 256, "auto", TOP_3, 1.2),
    "8B long answer": ("lad", LARGE, 8, 1024, 1024, "auto", TOP_3, 1.3),
    "8B int8": ("lad", LARGE, 8, 1792, 256, "int8", TOP_3, 1.5),
    "8B fp8": ("lad", LARGE, 8, 1792, 256, "fp8", TOP_3, 1.5),
    "8B int8 weights": ("lad", LARGE, 8, 1792, 256, "int8_weights", TOP_3, 1.2),
    "8B guided": ("lad", LARGE, 8, 1792, 256, "auto", {**TOP_3, "cfg_scale": 1.5}, 1.2),
    "1B": ("lad", SMALL, 1, 1, 255, "auto", TOP_3, None),
    "1B many candidates": ("lad", SMALL, 8, 64, 256, "auto", {"top_k": 200}, 1.8),
    "1B nucleus": ("lad", SMALL, 8, 64, 256, "auto", NUCLEUS, 1.8),
    "1B guided nucleus": ("lad", SMALL, 8, 64, 256, "auto", {**NUCLEUS, "cfg_scale": 1.5}, 1.5),
    "1B int8 nucleus": ("lad", SMALL, 8, 64, 256, "int8", NUCLEUS, 2.2),
    "masked": ("masked", SMALL, 8, 64, 256, "auto", {"reveal": "random", **TOP_3}, 1.5),
    "masked entropy": ("masked", SMALL, 8, 64, 256, "auto", {"reveal": "entropy", **NUCLEUS}, 1.4),
    "masked margin, guided": ("masked", SMALL, 1, 64, 256, "auto", {"reveal": "topk_margin", "cfg_scale": 1.5, **TOP_3}, 2.2),
    "simplex": ("simplex", MODELS["Mistral-7B"], 8, 64, 256, "auto", NUCLEUS, 1.5),
    "simplex int8": ("simplex", MODELS["Mistral-7B"], 1, 64, 512, "int8", NUCLEUS, 2.5),
    "latent": ("latent_ode", SMALL, 8, 64, 256, "auto", MIDPOINT, None),
    "latent adaptive": ("latent_ode", SMALL, 8, 64, 256, "auto", {**MIDPOINT, "solver": "bosh3"}, None),
    "latent guided": ("latent_ode", SMALL, 8, 64, 256, "auto", {**MIDPOINT, "cfg_scale": 1.5, "flow_label": 1}, None),
}


def facts_of(family: str, facts, layers: int = 2):
    """A few layers hold what many do: activations do not add up over them."""
    more = {
        "simplex": {"predicts_next_token": True, "extra": {"has_time_embedding": True}},
        "latent_ode": {"extra": LATENT},
    }
    return dataclasses.replace(facts, layers=layers, decoding=family, **more.get(family, {}))


def tight(trace: Trace, planned: int, slack: float | None) -> None:
    assert trace.peak <= planned / memory.ROUNDING
    if slack is not None:
        assert planned < slack * trace.peak


@pytest.mark.parametrize("name", TRACED)
@torch.inference_mode()
def test_a_plan_bounds_what_a_captured_step_and_its_beginning_allocate(name):
    family, facts, rows, prompt, answer, precision, settings, slack = TRACED[name]
    params = SamplingParams(**{"max_new_tokens": answer, "steps": 16, **settings})
    got = captured(facts_of(family, facts), params, rows=rows, prompt=prompt, answer=answer, precision=precision)
    tight(got.trace, got.plan.activations, slack)
    one = got.graphs._all[0]
    held = one.arena.nbytes + sum(block.nbytes for block in one.between)
    if family == "latent_ode":
        cache, model = one.state.memory.cache, got.graphs._denoiser.model
        grid = sum(part.nbytes for grid in model._grids.values() for part in grid)
        held += cache.keys.nbytes + cache.values.nbytes + model.table().nbytes + grid
        assert held <= got.plan.buffers
        tight(got.prime(), got.plan.activations, None)
    else:
        assert held == got.plan.buffers


@pytest.mark.parametrize("settings", [TOP_3, NUCLEUS], ids=["top 3", "nucleus"])
@pytest.mark.parametrize(
    "way", [{"dtype": torch.float32}, {"batch_invariant": True}, {"rank": 128}, {"rank": 128, "precision": "int8"}], ids=str
)
@torch.inference_mode()
def test_a_plan_holds_in_fp32_for_fixed_tiles_and_for_an_adapter_beside_the_weights(way, settings):
    params = SamplingParams(max_new_tokens=1024, steps=16, **settings)
    got = captured(facts_of("lad", SMALL), params, rows=8, prompt=512, answer=1024, **way)
    # The kernel of fixed tiles keeps gate and up to itself; a plan does not count on it.
    tight(got.trace, got.plan.activations, 2.2)


@torch.inference_mode()
def test_a_plan_of_a_continuation_bounds_the_reading_of_its_prompts():
    got = continued(facts_of("lad", SMALL), rows=8, prompt=200, answer=100)
    one = got.graphs._all[0]
    cache = one.state.memory.cache
    assert cache.keys.nbytes + cache.values.nbytes + got.graphs.buffer_bytes == got.plan.buffers
    tight(got.trace, got.plan.activations, None)
    tight(got.prime(), got.plan.activations, 2.0)


def test_the_target_of_8b_is_within_what_is_planned():
    # Batch 8, canvas 2048: 3 GB beside the weights, libraries' own memory included.
    facts = LARGE
    plan = memory.plan_memory(
        facts, rows=8, positions=2048, answers=256, item_bytes=2, weights=0, buffers=10**6, library=memory.LIBRARY_BYTES
    )
    assert 2e9 < plan.needed < 3e9


@pytest.mark.parametrize("name", ["random", "window", "guided", "retain_locked"])
def test_buffers_are_planned_to_the_byte(name):
    planned = []

    def plan(bucket, buffers: int) -> MemoryPlan:
        planned.append(buffers)
        return MemoryPlan(bucket.rows, bucket.positions, 0, buffers, 0)

    graphs = Graphs(LadDenoiser(StubModel(), OPS), LadBuckets(4096), SimulatedCapture(), plan)
    canvases = [canvas(3 + i, 12) for i in range(3)]
    host = graphs._denoiser.begin(canvases, [params_of(name)] * 3, mask_id=MASK, eos_ids=(EOS,), device="cpu")
    graphs.lease(host)
    held = [one.arena.nbytes + sum(block.nbytes for block in one.between) for one in graphs._all]
    assert planned == held and sum(held) == graphs.buffer_bytes
    assert [one.rows for one in graphs._all] == [4, 2, 1]


def test_limits_are_those_of_the_ops():
    assert memory.FEW_CANDIDATES == head_kernel.MAX_CANDIDATES
    assert memory.PRODUCT_VALUES == product.MOST_CUDA_VALUES
