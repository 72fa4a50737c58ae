"""The GPU's own backends traced without a GPU: tensors hold no data, kernels are not launched, everything else really runs.

A captured step allocates, launches and reads exactly what the trace does, because no shape in it depends on data. What a trace cannot
see is what libraries allocate by themselves (cuBLAS workspaces) and what the kernels compute.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import bench_on_path  # noqa: F401 - its import is its effect
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.random_model import MASK_ID
from lad_engine.config import AUTOREGRESSIVE_DEFAULTS, EngineConfig, SamplingParams
from lad_engine.continuation import Continuation
from lad_engine.contracts import Canvas, ModelFacts
from lad_engine.decoding import DENOISERS, Decoding
from lad_engine.denoisers.autoregressive_bucket import AutoregressiveBuckets
from lad_engine.kernels.attention import sdpa_kernel as attention_library
from lad_engine.kernels.decode_attention import sdpa_kernel as decode_library
from lad_engine.model.backbones import backbone_of
from lad_engine.model.language_model import LanguageModel
from lad_engine.model.precision import quantise
from lad_engine.model.transformer import Transformer
from lad_engine.ops import select_ops
from lad_engine.runtime.graphs import Graphs, buffer_bytes
from lad_engine.runtime.memory import MemoryPlan

interpreter = pytest.importorskip("triton.runtime.interpreter", reason="Triton is only published for Linux")
jit = pytest.importorskip("triton.runtime.jit")

# What makes a tensor of the device from numbers of the host: a copy from pageable memory, which a capture refuses.
FROM_HOST = ("tensor", "as_tensor", "from_numpy", "asarray")


class Trace(TorchDispatchMode):
    """Refuses any tensor that is not on the meta device, where a GPU's would be; counts launches and the bytes alive at once.

    A read on the host needs no rule of its own: meta tensors have no values. launches: by kernel. peak: bytes.
    is_captured False: the host's tensors may be copied in, as before a step.
    """

    def __init__(self, is_captured: bool = True) -> None:
        super().__init__()
        self.is_captured = is_captured
        self.launches: collections.Counter[str] = collections.Counter()
        self.peak, self._alive, self._seen = 0, 0, set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        given = _tensors((args, kwargs))
        out = func(*args, **(kwargs or {}))
        self.refuse_others(str(func), given + _tensors(out))
        known = {tensor.untyped_storage()._cdata for tensor in given}
        for tensor in _tensors(out):
            storage = tensor.untyped_storage()
            if tensor.device.type == "meta" and storage._cdata not in known and storage._cdata not in self._seen:
                self._seen.add(storage._cdata)
                self._alive += storage.nbytes()
                weakref.finalize(storage, self._freed, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self._alive)
        return out

    def refuse_others(self, name: str, tensors: list[Tensor]) -> None:
        devices = {tensor.device.type for tensor in tensors}
        assert devices <= {"meta"} or not self.is_captured, f"{name} met tensors on {sorted(devices)}"

    def _freed(self, key: int, nbytes: int) -> None:
        self._seen.discard(key)
        self._alive -= nbytes


@dataclasses.dataclass(frozen=True)
class Capture:
    """The captured buckets of one batch, the batch as it was laid out, and the memory that was planned for its bucket."""

    graphs: Graphs
    host: Any
    plan: MemoryPlan

    @property
    def trace(self) -> Trace:
        """The trace of the batch's own bucket."""
        return self.graphs._all[0]._graph

    def prime(self) -> Trace:
        """Trace what a decode does before its first step."""
        one = self.graphs._all[0]
        one.arena.load(lambda buffers: self.graphs.family.fill(buffers, self.host))
        with Trace(is_captured=False) as trace, without_launches(trace):
            self.graphs.prime(one)
        return trace


def captured(
    facts: ModelFacts,
    params: SamplingParams,
    *,
    rows: int = 2,
    prompt: int = 20,
    answer: int = 40,
    precision: str = "auto",
    batch_invariant: bool = False,
    rank: int = 0,
    dtype: torch.dtype = torch.bfloat16,
) -> Capture:
    """Capture the bucket of a batch, and the smaller ones it shrinks to, on the GPU's own backends; the graphs are traces.

    rank: of low-rank paths beside every part of every projection, the head's too; 0 for none.
    """
    ops = select_ops("auto", device="cuda", batch_invariant=batch_invariant)
    transformer = backbone_of(facts)(facts, ops, dtype, "meta")
    transformer.head.predicts_next_token = facts.predicts_next_token
    for projection in transformer.projections() if rank else ():
        for start, stop in projection.rows.values():
            b = torch.empty(stop - start, rank, dtype=dtype, device="meta")
            projection.attach(b.new_empty(rank, projection.weight.shape[1]), b, 1.0, start, stop)
    with without_launches():
        quantise(transformer, precision)
    model = LanguageModel(transformer, batch_invariant, rows_stand_alone=batch_invariant)
    name = str(dtype).removeprefix("torch.")
    config = EngineConfig(device="cpu", dtype=name, precision=precision, driver="eager", batch_invariant=batch_invariant)
    decoding = Decoding(model, ops, config, facts, facts.decoding)
    # L2D writes from left to right: what is not written yet is no token.
    mask_id = -1 if facts.decoding == "latent_ode" else MASK_ID
    is_open = np.arange(prompt + answer) >= prompt
    canvas = Canvas(np.where(is_open, mask_id, 8).astype(np.int64), is_open, prompt)
    layer_out = DENOISERS[facts.decoding][0](model, select_ops("reference"))
    host = layer_out.begin([canvas] * rows, [params] * rows, mask_id=mask_id, eos_ids=(2,), device="cpu")
    graphs = Graphs(decoding._denoiser, decoding._buckets, MetaCapture(), decoding.plan_bucket)
    graphs.lease(host)
    return Capture(graphs, host, decoding.plan_state(host))


def continued(facts: ModelFacts, *, rows: int, prompt: int, answer: int) -> Capture:
    """Capture the bucket of a batch that is continued token by token."""
    ops = select_ops("auto", device="cuda")
    transformer = Transformer(facts, ops, torch.bfloat16, "meta")
    config = EngineConfig(device="cpu", dtype="bfloat16", driver="eager", batch_invariant=False)
    continuation = Continuation(transformer, ops, config, facts)
    params = [SamplingParams(max_new_tokens=answer, **{**AUTOREGRESSIVE_DEFAULTS, "temperature": 0.8, "top_p": 0.9})] * rows
    host = continuation.decoder.lay_out([[8] * prompt] * rows, params, stop_ids=(2,), device="cpu")
    family = AutoregressiveBuckets(facts.max_positions)
    graphs = Graphs(continuation.decoder, family, MetaCapture(), continuation.plan_bucket)
    one = graphs.lease(host)
    return Capture(graphs, host, continuation.plan_bucket(one.bucket, buffer_bytes(family, family.blank(one.bucket, host))))


def traced(step: Callable[[], None]) -> Trace:
    """Call `step` once as a warm-up would, then trace it."""
    with without_launches():
        step()
    with Trace() as trace, without_launches(trace), _nothing_from_the_host():
        step()
    return trace


class MetaCapture:
    """Implements `runtime.graphs.Backend`: a bucket's device block is a meta tensor, and its graph is a trace."""

    is_simulated = True

    def empty(self, nbytes: int) -> Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, device="meta")

    def pinned(self, nbytes: int) -> Tensor:
        return torch.empty(nbytes, dtype=torch.uint8)

    def before_staging(self, arena: Any) -> None:
        """Nothing is in flight."""

    def upload(self, arena: Any, staging: Tensor, block: Tensor) -> None:
        block.copy_(staging)

    def capture(self, step: Callable[[], None], state: Any) -> Any:
        trace = traced(step)
        # `replay` is what the runtime asks a graph for.
        trace.replay = step
        return trace

    def synchronize(self) -> None:
        """Nothing is in flight."""

    def free_bytes(self) -> int | None:
        return None


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


@contextlib.contextmanager
def without_launches(trace: Trace | None = None) -> Iterator[None]:
    """Let the backends take meta tensors for a GPU's, and launches only check their arguments."""

    def getitem(kernel: Any, _: Any) -> Callable[..., None]:
        def launch(*args: Any, **kwargs: Any) -> None:
            if trace is not None:
                trace.launches[kernel.fn.__name__] += 1
                trace.refuse_others(kernel.fn.__name__, _tensors((args, kwargs)))

        return launch

    with pytest.MonkeyPatch.context() as patch:
        for kind in (jit.KernelInterface, interpreter.InterpretedFunction):
            patch.setattr(kind, "__getitem__", getitem, raising=False)
        for module in (attention_library, decode_library):
            # The library's kernels that a GPU takes keep no scores; the one of the meta device would.
            patch.setattr(module, "scaled_dot_product_attention", lambda q, *_, **__: torch.empty_like(q))
        patch.setattr(torch.Tensor, "is_cuda", property(lambda tensor: tensor.device.type == "meta"), raising=False)
        yield


@contextlib.contextmanager
def _nothing_from_the_host() -> Iterator[None]:
    def refuse(name: str) -> Callable[..., None]:
        def make(*_: Any, **__: Any) -> None:
            raise AssertionError(f"step: torch.{name} copies from the host.")

        return make

    with pytest.MonkeyPatch.context() as patch:
        for name in FROM_HOST:
            patch.setattr(torch, name, refuse(name))
        yield
