"""LadDenoiser as a whole: with an oracle for a model it finds the truth, and every promise about a decode's end holds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from option_sets import OPTION_SETS, params_of
from stub_model import EOS, MASK, OPS, OracleModel, StubModel, canvas

from lad_engine.contracts import Canvas
from lad_engine.denoisers.lad import LadDenoiser
from lad_engine.errors import RequestError
from lad_engine.runtime.readout import read_outcome
from lad_engine.runtime.runner import run, steps

TRUTH = [7, 8, 9, 10, 6, 12, 4, 8, 13, 20, 6, 7, 1, EOS, EOS, EOS]


def begin(model, canvases, params):
    denoiser = LadDenoiser(model, OPS)
    return denoiser, denoiser.begin(canvases, params, mask_id=MASK, eos_ids=(EOS,), device="cpu")


@pytest.mark.parametrize("name", [name for name in OPTION_SETS if name not in ("suppressed", "llada_forbid_eos")])
def test_an_oracle_model_is_followed_exactly(name):
    denoiser, state = begin(OracleModel(TRUTH), [canvas()], [params_of(name)])
    run(denoiser, state)
    outcome = read_outcome(state, 0)
    assert list(outcome.token_ids) == TRUTH[4:]
    assert min(outcome.confidences) > 0.99
    if params_of(name).remasking != "transfer" and params_of(name).early_stop and not params_of(name).retention != "none":
        window = params_of(name).tokens_per_step or 12
        # Three equal predictions, the first one when the window has reached the end.
        assert outcome.steps == -(-12 // window) + 2
        assert outcome.stopped_early == (outcome.steps < 9)


def test_without_early_stop_every_step_is_taken():
    denoiser, state = begin(OracleModel(TRUTH), [canvas()], [params_of("random", early_stop=False)])
    assert run(denoiser, state) == 9
    assert not read_outcome(state, 0).stopped_early


def test_forbidden_and_suppressed_tokens_never_appear_and_masks_never_end_a_decode():
    for seed in range(4):
        names = list(OPTION_SETS)
        denoiser, state = begin(StubModel(), [canvas()] * len(names), [params_of(name, seed=seed) for name in names])
        run(denoiser, state)
        assert not (state.answer == MASK).any()
        assert not torch.isin(state.answer[names.index("suppressed")], torch.tensor([1, 2, 8, 11])).any()
        assert EOS not in state.answer[names.index("llada_forbid_eos")].tolist()


def test_fixed_spans_never_change_and_the_prompt_never_changes():
    draft = [7, MASK, 8, 12, EOS, 10, MASK, MASK, 6, 7, 13, 14]
    request = canvas(draft=draft, fixed=(0, 3, 11))
    denoiser, state = begin(StubModel(), [request] * len(OPTION_SETS), [params_of(name) for name in OPTION_SETS])
    for _ in steps(denoiser, state):
        assert (state.ids[:, :4] == torch.tensor(request.ids[:4])).all()
        for i in (0, 3, 11):
            assert (state.ids[:, 4 + i] == draft[i]).all()
    outcome = read_outcome(state, 0)
    assert outcome.step_map[0] == (-1, -1) and outcome.confidences[0] == 1.0


def test_the_first_noise_keeps_the_asked_share_of_a_draft():
    draft = [7] * 20
    for noise_start, kept in ((0.0, 20), (0.25, 15), (1.0, 0)):
        _, state = begin(StubModel(), [canvas(draft=draft)], [params_of("random", noise_start=noise_start)])
        assert int((state.answer == 7).sum()) == kept
        assert torch.equal(state.ids[:, 4:], state.answer)


def test_shown_positions_are_never_masked_again_with_permanent_unmask():
    for name in ("random_permanent", "clusters_permanent", "weighted_permanent"):
        denoiser, state = begin(StubModel(), [canvas(2, 30)], [params_of(name, max_new_tokens=30)])
        shown = torch.zeros(30, dtype=torch.bool)
        for _ in steps(denoiser, state):
            assert not (shown & (state.answer[0] == MASK)).any()
            shown |= state.answer[0] != MASK


def test_locked_positions_keep_their_token_and_editable_ones_may_not():
    changed = {}
    for name in ("retain_locked", "retain_editable"):
        denoiser, state = begin(StubModel(), [canvas(2, 30)], [params_of(name, max_new_tokens=30, steps=12)])
        changed[name] = 0
        before = None
        for _ in steps(denoiser, state):
            if before is not None:
                held, tokens = before
                changed[name] += int((held & (state.predicted[0] != tokens)).sum())
            before = (state.retained[0].clone(), state.answer[0].clone())
    assert changed["retain_locked"] == 0 < changed["retain_editable"]


def test_step_map_follows_the_states():
    denoiser, state = begin(StubModel(), [canvas(2, 20)], [params_of("random", max_new_tokens=20)])
    first, last, shown = [-1] * 20, [-1] * 20, [MASK] * 20
    for step in steps(denoiser, state):
        for r, token in enumerate(state.answer[0].tolist()):
            if token != MASK:
                first[r] = step if first[r] < 0 else first[r]
                last[r] = step if token != shown[r] else last[r]
                shown[r] = token
    assert read_outcome(state, 0).step_map == tuple(zip(first, last, strict=True))


def test_guidance_counts_two_evaluations_and_changes_only_the_guided_row():
    _, plain = begin(StubModel(), [canvas()], [params_of("random")])
    denoiser, mixed = begin(StubModel(), [canvas(), canvas()], [params_of("random"), params_of("guided")])
    run(denoiser, plain)
    run(denoiser, mixed)
    assert torch.equal(mixed.answer[0], plain.answer[0])
    assert mixed.nfe.tolist() == [int(mixed.row_steps[0]), 2 * int(mixed.row_steps[1])]


def test_requests_that_cannot_be_decoded_are_refused_in_one_sentence():
    closed = Canvas(np.array([7, 8, 9]), np.array([False, False, False]), 1)
    for canvases, params, said in (
        ([closed], [params_of("random")], "no position is open"),
        ([Canvas(np.array([7, 8]), np.array([True, True]), 1)], [params_of("random")], "a prompt position is open"),
        ([Canvas(np.array([7, 8]), np.array([False, False]), 2)], [params_of("random")], "an answer that starts inside"),
        ([canvas()], [params_of("window", steps=2)], "Give at least 3 steps"),
        ([], [], "at least one"),
    ):
        with pytest.raises(RequestError, match=said):
            begin(StubModel(), canvases, params)
