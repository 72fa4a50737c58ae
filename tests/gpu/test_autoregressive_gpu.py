"""The captured decode step of the baseline gives the eager tokens on a GPU, with the library's kernels and with ours."""

from __future__ import annotations

import pytest
import torch

from lad_engine import Engine
from lad_engine.config import AUTOREGRESSIVE_DEFAULTS, SamplingParams
from lad_engine.denoisers.autoregressive import AutoregressiveDecoder
from lad_engine.model.causal_model import CausalModel
from lad_engine.model.transformer import Transformer
from lad_engine.model.weights import open_checkpoint
from lad_engine.ops import select_ops
from lad_engine.runtime.runner import run
from tiny_checkpoint import make_tiny

pytestmark = pytest.mark.gpu
PROMPTS = [list(range(5, 25)), list(range(40, 47)), [9]]
COUNT = 24


def params(**settings) -> SamplingParams:
    return SamplingParams(max_new_tokens=COUNT, **{**AUTOREGRESSIVE_DEFAULTS, **settings})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("ops", ["auto", "auto,few_row_linear=triton", "auto,decode_attention=sdpa"])
@torch.inference_mode()
def test_captured_and_eager_steps_choose_the_same_tokens(tmp_path, ops, dtype):
    checkpoint = open_checkpoint(make_tiny(tmp_path, family="llama", hidden_size=128, head_dim=64))
    chosen = select_ops(ops, "cuda")
    transformer = Transformer.from_tensors(checkpoint.facts, checkpoint.tensors(), chosen, dtype, "cuda")
    decoder = AutoregressiveDecoder(CausalModel(transformer, batch_invariant=False), chosen)
    each = [params(), params(seed=8, temperature=0.9, top_k=20), params(seed=9, temperature=1.1, top_p=0.9)]

    def begin():
        state = decoder.begin(PROMPTS, each, stop_ids=(2,), device="cuda", capacity=64)
        state.is_static = True
        return state

    eager = begin()
    run(decoder, eager)
    captured = begin()
    start = {name: tensor.clone() for name, tensor in buffers(captured).items()}
    graph = capture(decoder, captured)
    for name, tensor in buffers(captured).items():
        tensor.copy_(start[name])
    for _ in range(COUNT - 1):
        graph.replay()
    assert bool(captured.done.all())
    for name in ("answer", "answer_length", "nfe", "stopped_early"):
        assert torch.equal(getattr(captured, name), getattr(eager, name)), name
    assert torch.equal(captured.confidence, eager.confidence)


def test_an_engine_continues_by_every_driver_with_the_same_tokens(tmp_path):
    base = make_tiny(tmp_path, family="llama", hidden_size=128, head_dim=64)
    prompts = ["the user is there", "an answer", "the sea and the sun are on the way in"]
    each = [params(), params(seed=8, temperature=0.9, top_k=20), params(seed=9, temperature=1.1, top_p=0.9)]
    answers = {}
    for driver in ("eager", "replay", "auto"):
        engine = Engine.load(base, adapter=None, mask_token=None, device="cuda", dtype="float32", driver=driver)
        answers[driver] = [(one.token_ids, one.nfe) for one in engine.generate_autoregressive(prompts, each)]
        # Again, through the bucket that is captured by now.
        assert [(one.token_ids, one.nfe) for one in engine.generate_autoregressive(prompts, each)] == answers[driver]
    assert answers["eager"] == answers["replay"] == answers["auto"]


def buffers(state) -> dict[str, torch.Tensor]:
    every = {**vars(state), **{f"cache.{name}": value for name, value in vars(state.cache).items()}}
    return {name: value for name, value in every.items() if isinstance(value, torch.Tensor)}


def capture(decoder, state) -> torch.cuda.CUDAGraph:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            decoder.step_(state)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        decoder.step_(state)
    return graph
