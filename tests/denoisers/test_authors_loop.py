"""LadDenoiser against the authors' loops written out in plain Python, state for state after every step."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from authors_loop import SAMPLE, authors_loop, choose, philox_uniform
from option_sets import OPTION_SETS, params_of
from stub_model import EOS, MASK, OPS, StubModel, canvas

from lad_engine.denoisers.lad import LadDenoiser
from lad_engine.runtime.readout import read_outcome
from lad_engine.runtime.runner import steps

EOS_IDS = (EOS, 9)
# Tokens depend on their position only, so that greedy decoding settles; the stub's default reach never does.
CALM = (0, 0, 0, 7, 0)


def plain_predict(model, params, is_open):
    """The token choice of the plain loop: one position after the other."""

    def predict(ids, start, step):
        tokens, confidences = [], []
        said = Counter(t for t, o in zip(ids[start:], is_open, strict=False) if o and t not in (MASK, *EOS_IDS))
        for position in range(start, len(ids)):
            logits = model.plain_logits(ids, position)
            if params.cfg_scale > 0:
                base = model.plain_logits([MASK] * start + ids[start:], position)
                scale = np.float32(params.cfg_scale) + np.float32(1)
                logits = [float(np.float32(u) + scale * (np.float32(c) - np.float32(u))) for c, u in zip(logits, base, strict=True)]
            for token, count in said.items():
                penalty = np.float32(params.frequency_penalty) * np.float32(count) + np.float32(params.presence_penalty)
                logits[token] = float(np.float32(logits[token]) - penalty)
            u = philox_uniform(params.seed, position - start, step, SAMPLE)
            token, confidence = choose(logits, u, params, MASK, EOS_IDS)
            tokens.append(token)
            confidences.append(confidence)
        return tokens, confidences

    return predict


def compare(model, request, params):
    denoiser = LadDenoiser(model, OPS)
    state = denoiser.begin([request], [params], mask_id=MASK, eos_ids=EOS_IDS, device="cpu")
    states = [state.answer[0].tolist() for _ in steps(denoiser, state)]
    prompt = request.ids[: request.answer_start].tolist()
    answer, is_open = request.ids[request.answer_start :].tolist(), request.is_open[request.answer_start :].tolist()
    wanted = authors_loop(plain_predict(model, params, is_open), prompt, answer, is_open, params, MASK, EOS_IDS)
    assert states == wanted["states"]
    outcome = read_outcome(state, 0)
    assert list(outcome.token_ids) == wanted["answer"]
    assert outcome.steps == wanted["nfe"]
    assert outcome.nfe == wanted["nfe"] * (2 if params.cfg_scale > 0 else 1)
    assert outcome.stopped_early == wanted["stopped_early"]
    assert MASK not in [token for token, is_free in zip(outcome.token_ids, is_open, strict=True) if is_free]
    return outcome


@pytest.mark.parametrize("name", OPTION_SETS)
def test_every_option_set_equals_the_authors_loop(name):
    compare(StubModel(), canvas(), params_of(name, seed=2**40 + 17))


@pytest.mark.parametrize("name", ["greedy", "noise_free", "confidence_greedy", "retain_split_locked", "window_retained", "llada_blocks"])
def test_decoding_that_settles_equals_the_authors_loop(name):
    compare(StubModel(CALM), canvas(), params_of(name, steps=12))


@pytest.mark.parametrize("name", OPTION_SETS)
def test_drafts_with_fixed_spans_equal_the_authors_loop(name):
    draft = [7, MASK, 8, 12, EOS, 10, MASK, MASK, 6, 7, 13, 14]
    request = canvas(draft=draft, fixed=(0, 3, 4, 9))
    outcome = compare(StubModel(), request, params_of(name, noise_start=0.6))
    assert [outcome.token_ids[i] for i in (0, 3, 4, 9)] == [7, 12, EOS, 7]


def test_longer_answers_and_many_steps_equal_the_authors_loop():
    for name in ("weighted_split", "retain_split", "clusters", "random_permanent", "llada_random"):
        compare(StubModel(), canvas(3, 40), params_of(name, max_new_tokens=40, steps=24, seed=99))


def test_calm_greedy_decoding_stops_early_after_three_equal_states():
    outcome = compare(StubModel(CALM), canvas(), params_of("greedy"))
    assert (outcome.steps, outcome.stopped_early) == (3, True)
