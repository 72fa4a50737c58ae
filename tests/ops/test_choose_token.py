"""choose_token against a plain-Python transcription, and the distributions it draws from."""

from __future__ import annotations

import math
import random

import pytest
import torch

from lad_engine.kernels.choose_token.cases import cases
from lad_engine.kernels.choose_token.reference import choose_token


def one_row(logits, u, temperature, top_k, top_p, drop_crossing, full_confidence, bias):
    """The definition, one Python number at a time."""
    scores = [x + bias.get(i, 0.0) for i, x in enumerate(logits)]
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    scale = temperature or 1.0
    weight = [math.exp((x - scores[order[0]]) / scale) for x in scores]
    kept = order[:top_k] if top_k else order
    if top_p < 1:
        total = sum(weight[i] for i in kept)
        survivors, before = [], 0.0
        for rank, i in enumerate(kept):
            mass = before + weight[i] if drop_crossing else before
            if rank == 0 or mass <= top_p * total:
                survivors.append(i)
            before += weight[i]
        kept = survivors
    total = sum(weight[i] for i in kept)
    walk = kept if top_k or top_p < 1 else range(len(scores))
    cumulative, token = 0.0, kept[0]
    if temperature:
        for i in walk:
            cumulative += weight[i]
            if cumulative > u * total:
                token = i
                break
    return token, weight[token] / (sum(weight) if full_confidence else total)


def run(logits, uniforms, *, temperature=1.0, top_k=0, top_p=1.0, drop_crossing=False, full_confidence=False, bias=None, **static):
    N = logits.shape[0]
    bias = bias or {0: 0.0}
    full = lambda value, dtype=torch.float32: torch.full((N,), value, dtype=dtype)  # noqa: E731
    values = torch.tensor([list(bias.values())], dtype=torch.float32).expand(N, -1)
    return choose_token(
        logits,
        uniforms,
        full(temperature),
        full(top_k, torch.int64),
        full(top_p),
        full(drop_crossing, torch.bool),
        full(full_confidence, torch.bool),
        torch.tensor(list(bias)),
        values,
        max_top_k=static.get("max_top_k", top_k or (0 if top_p < 1 else 1)),
        samples_all=static.get("samples_all", not top_k and top_p >= 1 and temperature > 0),
    )


@pytest.mark.parametrize("temperature", [0.0, 0.6, 1.0, 2.5])
@pytest.mark.parametrize("top_k", [0, 1, 3, 40])
@pytest.mark.parametrize("top_p", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("drop_crossing", [False, True])
def test_every_rule_equals_the_plain_transcription(temperature, top_k, top_p, drop_crossing):
    generator = torch.Generator().manual_seed(7)
    logits = torch.randint(-8, 8, (12, 40), generator=generator).float() / 2
    uniforms = torch.rand(12, generator=generator).clamp(1e-5, 1 - 1e-5)
    bias = {3: -math.inf, 5: 1.5}
    for full_confidence in (False, True):
        rule = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "drop_crossing": drop_crossing}
        token, confidence = run(logits, uniforms, bias=bias, full_confidence=full_confidence, **rule)
        for n in range(12):
            wanted = one_row(logits[n].tolist(), float(uniforms[n]), temperature, top_k, top_p, drop_crossing, full_confidence, bias)
            assert int(token[n]) == wanted[0]
            assert float(confidence[n]) == pytest.approx(wanted[1], rel=2e-6)


def test_equal_scores_go_to_the_lower_id_inside_and_at_the_edge_of_top_k():
    logits = torch.tensor([[1.0, 5.0, 3.0, 5.0, 3.0, 3.0, 0.0]])
    seen = {int(run(logits, torch.tensor([u / 100]), top_k=3)[0]) for u in range(1, 100)}
    assert seen == {1, 3, 2}
    assert int(run(logits, torch.tensor([0.01]), top_k=3)[0]) == 1
    constant = torch.zeros(1, 5000)
    assert {int(run(constant, torch.tensor([u / 100]), top_k=4)[0]) for u in range(1, 100)} == {0, 1, 2, 3}


def test_the_space_drops_the_crossing_token_and_keeps_rank_zero():
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
    high = torch.tensor([0.999])
    assert int(run(logits, high, top_p=0.6)[0]) == 1
    assert int(run(logits, high, top_p=0.6, drop_crossing=True)[0]) == 0
    assert int(run(logits, high, top_p=0.1, drop_crossing=True)[0]) == 0
    assert int(run(logits, high, top_p=0.1)[0]) == 0


def test_a_row_does_not_depend_on_which_path_its_batch_takes():
    torch.manual_seed(3)
    logits, uniforms = torch.randn(64, 300), torch.rand(64).clamp(1e-5, 1 - 1e-5)
    alone = run(logits, uniforms, top_k=5, top_p=0.8)
    wide = run(logits, uniforms, top_k=5, top_p=0.8, max_top_k=50, samples_all=True)
    sorted_all = run(logits, uniforms, top_k=5, top_p=0.8, max_top_k=0)
    single = [run(logits[n : n + 1], uniforms[n : n + 1], top_k=5, top_p=0.8) for n in range(64)]
    for other in (wide, sorted_all, tuple(torch.cat(column) for column in zip(*single, strict=True))):
        assert torch.equal(alone[0], other[0]) and torch.equal(alone[1], other[1])


@pytest.mark.parametrize("settings", [{"top_k": 4}, {"temperature": 1.7}, {"top_p": 0.7}])
def test_draws_follow_the_distribution(settings):
    generator = random.Random(1)
    logits = torch.tensor([generator.gauss(0, 1) for _ in range(8)])
    N = 40000
    uniforms = (torch.arange(N) + 0.5) / N
    token, confidence = run(logits.expand(N, -1), uniforms, **settings)
    counts = torch.bincount(token, minlength=8).double()
    for i in range(8):
        if counts[i]:
            assert counts[i] / N == pytest.approx(float(confidence[token == i][0]), abs=2e-4)


def test_inputs_stay_unchanged_and_wrong_shapes_are_named():
    case = cases("cpu", torch.float32)[1]
    before = case["logits"].clone()
    choose_token(**case)
    assert torch.equal(before, case["logits"])
    with pytest.raises(ValueError, match="bias_values is"):
        choose_token(**{**case, "bias_values": torch.zeros(1, 1)})
    with pytest.raises(ValueError, match="logits is"):
        choose_token(**{**case, "logits": before[0]})
