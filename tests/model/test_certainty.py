"""How sure a distribution is, against the definitions written out row by row."""

from __future__ import annotations

import math

import torch

from lad_engine.config import REVEALS, SamplingParams
from lad_engine.contracts import ModelFacts, RopeFacts
from lad_engine.model.certainty import certainty_of
from lad_engine.model.head import Head
from lad_engine.ops import select_ops
from lad_engine.samplers.reveal import CERTAINTIES
from lad_engine.samplers.token_rule import build_token_rule

V = 40


def plain(logits, kind, params):
    """One row: filter, normalise, measure."""
    scale = params.temperature or 1.0
    scores = (logits / scale).double()
    order = scores.argsort(descending=True).tolist()
    p = scores.softmax(0)
    kept = order[: params.top_k or V]
    if params.top_p < 1:
        total, running, chosen = float(p[kept].sum()), 0.0, []
        for token in kept:
            if chosen and running / total > params.top_p:
                break
            chosen.append(token)
            running += float(p[token])
        kept = chosen
    q = p if params.confidence == "full" else p[kept] / p[kept].sum()
    best = q.sort(descending=True).values
    if kind == 0:
        return float(best[0])
    if kind == 1:
        return float(best[0] - (best[1] if len(best) > 1 else 0.0))
    return sum(float(x) * math.log(float(x) + 1e-10) for x in q)


def test_margin_and_entropy_follow_their_definitions_under_every_filter():
    rows = [
        SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, confidence=confidence)
        for temperature in (0.7, 1.5)
        for top_k, top_p in ((0, 1.0), (0, 0.8), (5, 1.0), (7, 0.6))
        for confidence in ("full", "kept")
    ]
    rule = build_token_rule(rows, 0, (), "cpu")
    logits = torch.randn(len(rows), V) * 2
    masked = logits.clone()
    masked[:, 0] = -math.inf
    columns = (rule.temperature, rule.top_k, rule.top_p, rule.drop_crossing, rule.full_confidence, rule.bias_ids, rule.bias_values)
    for kind in (0, 1, 2):
        got = certainty_of(logits, torch.full((len(rows),), kind), *columns, max_top_k=rule.max_top_k)
        wanted = torch.tensor([plain(row, kind, params) for row, params in zip(masked, rows, strict=True)])
        assert torch.allclose(got, wanted, atol=2e-5), kind


def test_the_head_gives_certainty_beside_the_same_tokens_in_chunks_of_any_size():
    facts = ModelFacts(
        "llama", 16, 32, 1, 2, 2, 8, V, 512, 1e-5, RopeFacts(), False, False, None, (1,)
    )  # fmt: skip
    head = Head(facts, select_ops("reference"), None, torch.float32, "cpu")
    torch.nn.init.normal_(head.projection.weight)
    torch.nn.init.ones_(head.norm)
    params = [SamplingParams(top_k=0), SamplingParams(temperature=0.5, top_k=0, top_p=0.9, confidence="kept")]
    rule, rows, uniforms = build_token_rule(params, 3, (), "cpu"), torch.randn(2, 150, 16), torch.rand(2, 150)
    kinds = torch.tensor([1, 2])
    with torch.inference_mode():
        plain_choice = head.choose(rows, rule, uniforms)
        whole = head.choose(rows, rule, uniforms, certainty=kinds)
        counted = head.choose(rows, rule, uniforms, counts=(150, 70), certainty=kinds)
    assert plain_choice.certainty is None
    assert torch.equal(whole.token, plain_choice.token) and torch.equal(counted.token[0], whole.token[0])
    assert torch.allclose(counted.certainty[0], whole.certainty[0], atol=1e-5)
    assert torch.allclose(counted.certainty[1, :70], whole.certainty[1, :70], atol=1e-5) and not counted.certainty[1, 70:].any()
    assert (whole.certainty[0] >= 0).all() and (whole.certainty[1] <= 0).all()


def test_only_rules_of_the_config_have_certainties():
    assert set(CERTAINTIES) < set(REVEALS)
