"""Prompts read into a cache and continued token by token equal one causal pass over the whole text."""

from __future__ import annotations

import pytest
import torch

from lad_engine.kernels.few_row_linear.reference import MAX_ROWS
from lad_engine.model.causal_model import FEW_ROWS, CausalModel
from lad_engine.model.kv_cache import KVCache
from lad_engine.model.transformer import Transformer
from lad_engine.model.weights import open_checkpoint
from lad_engine.ops import select_ops
from tiny_checkpoint import make_tiny

LENGTHS = (11, 3, 7)


@pytest.fixture(scope="module")
def transformer(tmp_path_factory) -> Transformer:
    folder = make_tiny(tmp_path_factory.mktemp("base"), family="qwen2", tie=True)
    checkpoint = open_checkpoint(folder)
    return Transformer.from_tensors(checkpoint.facts, checkpoint.tensors(), select_ops("reference"))


def assert_close(got: torch.Tensor, wanted: torch.Tensor) -> None:
    assert (got - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("has_host_lengths", [True, False])
@pytest.mark.parametrize("batch_invariant", [True, False])
@torch.inference_mode()
def test_prompts_of_different_lengths_are_read_and_continued(transformer, batch_invariant, has_host_lengths):
    model = CausalModel(transformer, batch_invariant)
    text = torch.randint(0, 300, (3, 20), generator=torch.Generator().manual_seed(3))
    whole = transformer(text, is_causal=True)
    cache = model.open_cache(3, 20)
    rows = model.prefill(text[:, : max(LENGTHS)], LENGTHS, cache)
    assert cache.positions.tolist() == list(LENGTHS)
    for b, length in enumerate(LENGTHS):
        assert_close(rows[b], whole[b, length - 1])
    for step in range(5):
        lengths = tuple(length + step for length in LENGTHS)
        rows = model.decode(text[range(3), lengths], cache, lengths if has_host_lengths else None)
        cache.positions.add_(1)
        for b, length in enumerate(lengths):
            assert_close(rows[b], whole[b, length])


@torch.inference_mode()
def test_a_row_nobody_reads_is_left_out_and_changes_no_other(transformer):
    model = CausalModel(transformer)
    text = torch.arange(22).view(2, 11)
    caches = [model.open_cache(2, 12) for _ in range(2)]
    for cache in caches:
        model.prefill(text, (11, 4), cache)
    every = model.decode(text[:, 0], caches[0], (11, 4))
    one = model.decode(text[:, 0], caches[1], (11, 4), (True, False))
    assert torch.equal(one[1], every[1]) and not one[0].any()


def test_a_view_of_a_cache_is_on_its_storage(transformer):
    cache = KVCache(transformer.facts, batch=3, capacity=8, dtype=torch.float32, device="cpu")
    part = cache.view(1, 2, 5)
    part.keys.fill_(1.0)
    part.positions.add_(4)
    assert part.capacity == 5 and cache.capacity == 8
    assert cache.positions.tolist() == [0, 4, 0]
    assert cache.keys.sum() == part.keys.numel() and cache.keys[:, 1, :5].all()


def test_the_model_hands_the_few_row_op_no_more_than_it_takes():
    assert FEW_ROWS == MAX_ROWS
