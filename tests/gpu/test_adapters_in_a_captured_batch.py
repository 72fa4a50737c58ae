"""Several adapters in one captured batch: who uses which, and what an adapter holds, change without a new capture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lad_engine.adapters.attach import attach
from lad_engine.adapters.reader import read_adapter
from lad_engine.adapters.store import AdapterStore
from lad_engine.model.language_model import LanguageModel
from lad_engine.model.transformer import Transformer
from lad_engine.model.weights import open_checkpoint
from lad_engine.ops import select_ops
from lad_engine.text.codec import load_tokenizer
from tiny_adapter import write_adapter
from tiny_checkpoint import make_tiny

LENGTHS = (19, 12, 7)
IDS = torch.arange(3 * 19).view(3, 19) % 60 + 7


def open_base(folder: Path, device: str, dtype: torch.dtype) -> Transformer:
    checkpoint = open_checkpoint(folder)
    return Transformer.from_tensors(checkpoint.facts, checkpoint.tensors(), select_ops("auto", device), dtype, device)


def captured(step: Callable[[], Tensor], device: str) -> Callable[[], Tensor]:
    """Return a function that computes the step again into the same memory; on a CPU it calls it."""
    if device == "cpu":
        return step
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()

    def replay() -> Tensor:
        # What the last replay left must not pass for an answer.
        out.fill_(torch.nan)
        graph.replay()
        return out.clone()

    return replay


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@torch.inference_mode()
def test_every_sequence_gets_its_own_adapter_through_one_capture(tmp_path, device, dtype):
    base = make_tiny(tmp_path / "base", family="llama")
    adapters = {name: read_adapter(write_adapter(base, tmp_path / f"{name}.safetensors", seed=seed)) for seed, name in enumerate("abc")}
    ids, lengths = IDS.to(device), torch.tensor(LENGTHS, device=device)
    alone = {None: LanguageModel(open_base(base, device, dtype), False).hidden(ids, lengths)}
    for name, adapter in adapters.items():
        plain = open_base(base, device, dtype)
        attach(plain, adapter)
        alone[name] = LanguageModel(plain, False).hidden(ids, lengths)
    transformer = open_base(base, device, dtype)
    store = AdapterStore.holding(transformer, load_tokenizer(base), {name: adapters[name] for name in "ab"})
    model = LanguageModel(transformer, False)
    store.select(("a", None, "b"))
    run = captured(lambda: model.hidden(ids, lengths), device)

    def check(*held: str | None) -> None:
        got = run()
        for row, (name, length) in enumerate(zip(held, LENGTHS, strict=True)):
            wanted = alone[name][row, :length]
            error = float((got[row, :length] - wanted).float().norm() / wanted.float().norm())
            assert error < {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}[dtype], (held, row, error)
            others = [alone[other][row, :length] for other in alone if other != name]
            assert all(float((got[row, :length] - other).float().norm()) > 0 for other in others)

    check("a", None, "b")
    store.select(("b", "a", None))
    check("b", "a", None)
    store.finish()
    check(None, None, None)
    store.replace("a", adapters["c"])
    store.select(("a", "b", "a"))
    check("c", "b", "c")
