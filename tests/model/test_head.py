"""The head: all rows in one call or sequence by sequence, with guidance, and under an adapter of its own."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from lad_engine.config import SamplingParams
from lad_engine.model.transformer import Transformer
from lad_engine.model.weights import open_checkpoint
from lad_engine.ops import select_ops
from lad_engine.samplers.token_rule import build_token_rule
from tiny_checkpoint import make_tiny

PARAMS = [
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=0.8, top_k=3, top_p=0.9, suppress_tokens=(7, 9)),
    SamplingParams(temperature=1.2, top_k=5, confidence="full", eos_bias=1.0),
]


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny") / "base"
    make_tiny(folder, family="llama")
    checkpoint = open_checkpoint(folder)
    return Transformer.from_tensors(checkpoint.facts, checkpoint.tensors(), select_ops("reference")).head


@pytest.fixture
def batch(head):
    rule = build_token_rule(PARAMS, 3, (2,), "cpu")
    # Every row has another draw, and every sequence another rule.
    return torch.randn(3, 40, head.facts.width) * 3, rule, torch.rand(3, 40).clamp(1e-6, 1 - 1e-6)


def with_ops(head, monkeypatch, **functions):
    monkeypatch.setattr(head, "ops", dataclasses.replace(head.ops, **functions))


@torch.inference_mode()
def test_all_rows_at_once_are_the_rows_one_by_one(head, batch, monkeypatch):
    calls, lm_head = [], head.ops.lm_head
    with_ops(head, monkeypatch, lm_head=lambda rows, *rest, **static: (calls.append(len(rows)), lm_head(rows, *rest, **static))[1])
    together = head.choose(*batch)
    apart = head.choose(*batch, counts=(40, 40, 40))
    assert calls == [120, 40, 40, 40]
    assert torch.equal(together.token, apart.token)
    torch.testing.assert_close(together.confidence, apart.confidence)
    some = head.choose(*batch, counts=(40, 0, 11))
    assert torch.equal(some.token[0], apart.token[0]) and torch.equal(some.token[2, :11], apart.token[2, :11])
    assert not some.token[1].any() and not some.confidence[2, 11:].any()


@torch.inference_mode()
def test_only_guided_sequences_pay_for_the_second_head(head, batch, monkeypatch):
    rows, rule, uniforms = batch
    rule = dataclasses.replace(rule, cfg_scale=torch.tensor([0.0, 1.5, 0.0]))
    unconditional = torch.randn_like(rows)
    computed, logits = [], head.logits
    monkeypatch.setattr(head, "logits", lambda part: (computed.append(len(part)), logits(part))[1])
    everywhere = head.choose(rows, rule, uniforms, unconditional)
    every = head.choose(rows, rule, uniforms, unconditional, (40, 40, 40))
    assert computed == [120, 120] + [40] * 6
    computed.clear()
    named = head.choose(rows, rule, uniforms, unconditional, (40, 40, 40), (False, True, False))
    assert computed == [40, 40]
    plain = head.choose(rows, rule, uniforms, counts=(40, 40, 40))
    for other in (every, named, everywhere):
        assert torch.equal(other.token, named.token)
        assert torch.equal(other.token[::2], plain.token[::2])
    assert not torch.equal(named.token[1], plain.token[1])


@torch.inference_mode()
def test_an_adapter_on_the_head_is_heard(head, batch, monkeypatch):
    rows, rule, uniforms = batch
    plain = head.choose(rows, rule, uniforms)
    path = torch.randn(4, head.facts.width), torch.randn(head.facts.vocab_size, 4)
    head.projection.attach(*path, 0.5, 0, head.facts.vocab_size)
    try:
        # In chunks smaller than a sequence.
        monkeypatch.setattr("lad_engine.model.head.ROWS_PER_CHUNK", 16)
        adapted = head.choose(rows, rule, uniforms)
        apart = head.choose(rows, rule, uniforms, counts=(40, 40, 40))
        first = head.logits(rows[0]).index_add_(1, rule.bias_ids, rule.bias_values[:1].expand(40, -1)).argmax(1)
    finally:
        head.projection.detach()
    assert torch.equal(adapted.token, apart.token)
    assert torch.equal(adapted.token[0], first)
    assert not torch.equal(adapted.token[0], plain.token[0])


@torch.inference_mode()
@pytest.mark.parametrize("backend", ["cublas", "triton"])
def test_every_backend_of_the_head_chooses_the_same(head, batch, backend, monkeypatch):
    pytest.importorskip("triton", reason="Triton is only published for Linux")
    if torch.cuda.is_available():
        pytest.skip("the model of this file is on the CPU, where these run interpreted")
    rows, rule, uniforms = batch[0][:, :9], batch[1], batch[2][:, :9]
    wanted = head.choose(rows, rule, uniforms)
    with_ops(head, monkeypatch, lm_head=select_ops("reference", overrides={"lm_head": backend}).lm_head)
    got = head.choose(rows, rule, uniforms)
    assert torch.equal(got.token, wanted.token)
    torch.testing.assert_close(got.confidence, wanted.confidence, rtol=1e-5, atol=1e-7)
