"""A captured step mixes no device with another, reads nothing on the host and makes the calls it is said to make, for every family."""

from __future__ import annotations

import collections
import dataclasses

import bench_on_path  # noqa: F401 - its import is its effect
import pytest
import torch
from gpu_on_meta import Trace, captured, continued, traced

from bench.random_model import MODELS
from lad_engine.config import SamplingParams
from lad_engine.model.latent_facts import LatentFacts
from lad_engine.ops import OP_NAMES, load_op

LAYERS = 3
LLAMA = dataclasses.replace(MODELS["SmolLM2-135M"], layers=LAYERS)
GPT2 = {"family": "gpt2", "kv_heads": LLAMA.query_heads, "mlp_width": 4 * LLAMA.width, "max_positions": 1024}
FACTS = {
    "lad": LLAMA,
    "masked": dataclasses.replace(LLAMA, decoding="masked"),
    "masked gpt2": dataclasses.replace(LLAMA, decoding="masked", **GPT2),
    "simplex": dataclasses.replace(LLAMA, decoding="simplex", predicts_next_token=True, extra={"has_time_embedding": True}),
    "latent_ode": dataclasses.replace(LLAMA, decoding="latent_ode", extra=LatentFacts(flow_width=64, rank=8, classes=3).to_extra()),
}
SETTINGS = {
    "lad": {
        "top 3": {"top_k": 3, "early_stop": True},
        "guided": {"top_k": 3, "cfg_scale": 1.5},
        "nucleus": {"top_k": 0, "top_p": 0.9},
        "whole vocabulary": {"top_k": 0, "confidence": "full"},
        "retained": {"retention": "locked", "selection": "random", "eos_split": True},
    },
    "masked": {
        "random": {"reveal": "random", "top_k": 3},
        "blocks": {"reveal": "transfer", "block_length": 10, "threshold": 0.3, "eos_treatment": "low_confidence"},
        "entropy": {"reveal": "entropy", "reveal_temperature": 0.5, "top_k": 0, "top_p": 0.9},
        "cutoff": {"reveal": "confidence", "cfg_scale": 1.5},
    },
    "masked gpt2": {"origin": {"reveal": "origin", "top_k": 3}},
    "simplex": {"ddpm": {"top_p": 0.9}},
    "latent_ode": {
        "midpoint": {"solver": "midpoint", "top_k": 0},
        "guided": {"solver": "euler", "cfg_scale": 1.5, "flow_label": 1, "top_k": 0},
        "average": {"solver": "rk4", "flow_estimate": "average_nearest", "top_k": 0},
        "adaptive": {"solver": "bosh3", "top_k": 0},
    },
}
PAIRS = [(family, name) for family, settings in SETTINGS.items() for name in settings]
# qkv, output and down are lora_linear; whole batches, whatever their size.
EACH_LAYER = {"add_rmsnorm": 2, "lora_linear": 3, "packed_attention": 1, "gate_up": 1}


def params_of(family: str, name: str) -> SamplingParams:
    return SamplingParams(**{"max_new_tokens": 40, "steps": 4, **SETTINGS[family][name]})


@pytest.mark.parametrize(("family", "name"), PAIRS)
@torch.inference_mode()
def test_a_denoising_step_touches_one_device_and_reads_nothing(family, name):
    graphs = captured(FACTS[family], params_of(family, name)).graphs
    assert [one.rows for one in graphs._all] == ([2] if family == "latent_ode" else [2, 1])
    assert all(one._graph.launches["_uniform_kernel"] >= 1 for one in graphs._all)


@pytest.mark.parametrize(("precision", "batch_invariant"), [("int8", True), ("int8_weights", True), ("fp8", False), ("auto", True)])
@torch.inference_mode()
def test_weights_in_8_bits_and_fixed_tiles_keep_the_step_static(precision, batch_invariant):
    launches = captured(FACTS["lad"], params_of("lad", "top 3"), precision=precision, batch_invariant=batch_invariant).trace.launches
    assert launches["_update_kernel"] == 1
    if precision in ("int8", "fp8"):
        # Each layer's norms and activation hand on quantised rows; attention's output is quantised by itself.
        assert launches["_rmsnorm_quantise_kernel"] >= 2 * LAYERS and launches["_swiglu_quantise_kernel"] == LAYERS


@torch.inference_mode()
def test_an_autoregressive_step_touches_one_device_and_reads_nothing():
    trace = continued(LLAMA, rows=2, prompt=3, answer=20).trace
    assert trace.launches["_decode_attention_kernel"] == LAYERS


def test_a_tensor_of_the_host_and_a_read_on_it_are_seen():
    x = torch.ones(3, device="meta")
    with Trace(), pytest.raises(AssertionError, match=r"met tensors on .*cpu"):
        x + torch.ones(())
    for step, words in ((lambda: x.sum().item(), "meta"), (lambda: torch.tensor([1.0], device="meta"), "copies from the host")):
        with pytest.raises((AssertionError, RuntimeError), match=words):
            with_one_warm_up(step)


def with_one_warm_up(step) -> None:
    """Trace `step`, whose warm-up is left out: it would raise there."""
    calls = iter((lambda: None, step))
    traced(lambda: next(calls)())


@torch.inference_mode()
def test_a_step_makes_seven_calls_a_layer_and_four_around_them():
    graphs, calls = captured(FACTS["lad"], params_of("lad", "top 3"), rows=4).graphs, collections.Counter()
    denoiser, state = graphs._denoiser, graphs._all[0].state
    ops = counted(denoiser.ops, calls)
    denoiser.ops = denoiser.model.transformer.ops = denoiser.model.head.ops = ops
    traced(lambda: denoiser.step_(state))
    # Counted twice: a trace has a warm-up.
    wanted = {name: 2 * count * LAYERS for name, count in EACH_LAYER.items()}
    wanted["add_rmsnorm"] += 2
    assert dict(calls) == {**wanted, "lm_head": 2, "random": 2, "update": 2}
    assert sum(EACH_LAYER.values()) * MODELS["SmolLM2-135M"].layers + 4 == 214


def counted(ops, calls: collections.Counter):
    """Return `ops` whose functions count themselves by name."""

    def counting(name, function):
        def run(*args, **kwargs):
            calls[name] += 1
            return function(*args, **kwargs)

        return run

    names = {load_op(name).function: name for name in OP_NAMES}
    return dataclasses.replace(ops, **{function: counting(name, getattr(ops, function)) for function, name in names.items()})
