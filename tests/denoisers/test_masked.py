"""Masked decoding against plain transcriptions of its reference loops, and what an oracle must lead to."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from masked_stub import SureModel, SureOracle, begin, greedy, holes, logits_of
from stub_model import MASK, VOCABULARY, canvas

from bench.families.masked_loop import confidence_reveal, dream_reveal, llada_blocks, random_reveal
from lad_engine.config import SamplingParams
from lad_engine.errors import RequestError
from lad_engine.runtime.runner import run

PATTERNS = ["ab|____________", "abc|__x____yz___", "a|_____end", "abcd|_"]
# chi-square of the joint counts; draws are fixed, and of a right implementation one in a hundred thousand fails
FALSE_ALARM_Z = 4.42


def final_ids(model, pattern, params):
    denoiser, state = begin(model, [holes(pattern)], [params])
    passes = run(denoiser, state)
    return state.ids[0], passes, state


def ids_of(pattern):
    laid = holes(pattern)
    return torch.from_numpy(laid.ids)[None], torch.from_numpy(~laid.is_open)[None], laid.answer_start


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("steps", [1, 3, 8, 20])
def test_confidence_reveal_is_diffullamas_loop(pattern, steps):
    ids, is_fixed, _ = ids_of(pattern)
    wanted, passes = confidence_reveal(logits_of(SureModel()), ids, is_fixed, MASK, steps=steps)
    got, taken, state = final_ids(SureModel(), pattern, greedy(reveal="confidence", steps=steps, temperature=1.0, early_stop=False))
    assert got.tolist() == wanted[0].tolist()
    assert taken == passes == steps == int(state.nfe[0])


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("rule", ["maskgit_plus", "topk_margin", "entropy"])
@pytest.mark.parametrize("steps", [1, 4, 16])
def test_ordered_rules_are_dreams(pattern, rule, steps):
    ids, _, _ = ids_of(pattern)
    wanted, _ = dream_reveal(logits_of(SureModel()), ids, MASK, steps=steps, rule=rule)
    got, taken, _ = final_ids(SureModel(), pattern, greedy(reveal=rule, steps=steps, early_stop=False))
    assert got.tolist() == wanted[0].tolist() and taken == steps


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("settings", [{}, {"threshold": 0.3}, {"threshold": 0.05}, {"factor": 1.2}, {"factor": 4.0}], ids=str)
@pytest.mark.parametrize("block", [4, 16])
def test_transfer_is_lladas_loop_and_fast_dllms(pattern, settings, block):
    ids, _, start = ids_of(pattern)
    blocks = -(-(ids.shape[1] - start) // block)
    # As many steps as positions: the budget asks for one a step, which is all Fast-dLLM promises.
    steps = blocks * block if settings else blocks * 2
    wanted, passes = llada_blocks(logits_of(SureModel()), ids, start, MASK, steps=steps, block_length=block, **settings)
    got, taken, _ = final_ids(SureModel(), pattern, greedy(reveal="transfer", steps=steps, block_length=block, **settings))
    assert got.tolist() == wanted[0].tolist()
    assert taken == passes if settings else taken <= steps


def test_a_threshold_takes_fewer_passes_than_one_a_position_and_no_more_than_steps():
    one = greedy(reveal="transfer", steps=12, threshold=0.05)
    assert final_ids(SureModel(), PATTERNS[0], one)[1] < 12
    assert final_ids(SureModel(), PATTERNS[0], one.replace(threshold=1.0))[1] == 12
    # Less steps than a position each: the budget makes up for what the threshold leaves.
    ids, passes, _ = final_ids(SureModel(), PATTERNS[0], one.replace(threshold=1.0, steps=5))
    assert passes == 5 and MASK not in ids.tolist()


@pytest.mark.parametrize("reveal", ["random", "confidence", "origin", "maskgit_plus", "topk_margin", "entropy", "transfer"])
def test_an_oracle_is_reached_exactly_by_every_rule(reveal):
    truth = [(7 * i + 6) % VOCABULARY for i in range(14)]
    truth = [token + 1 if token in (MASK, 5) else token for token in truth]
    for temperature in (0.0, 1.0):
        params = SamplingParams(steps=4, temperature=temperature, top_k=0, reveal=reveal, seed=3)
        ids, _, state = final_ids(SureOracle(truth), PATTERNS[0], params)
        assert ids.tolist()[2:] == truth[2:]
        assert bool(state.done[0]) and MASK not in state.answer.tolist()


@pytest.mark.parametrize("reveal", ["random", "confidence", "transfer", "entropy"])
def test_given_tokens_stay_wherever_they_stand(reveal):
    laid = holes(PATTERNS[1])
    ids, _, state = final_ids(SureModel(), PATTERNS[1], greedy(reveal=reveal))
    fixed = ~laid.is_open
    assert ids.numpy()[fixed].tolist() == laid.ids[fixed].tolist()
    assert (state.first_set[0].numpy()[laid.is_open[3:]] >= 0).all() and (state.first_set[0].numpy()[fixed[3:]] == -1).all()


def test_random_reveal_makes_exactly_t_passes_where_none_is_left_out():
    params = SamplingParams(steps=64, top_k=0, reveal="random", early_stop=False)
    denoiser, state = begin(SureModel(), [canvas()], [params])
    assert run(denoiser, state) == 64 and int(state.nfe[0]) == 64
    denoiser, state = begin(SureModel(), [canvas()], [params.replace(early_stop=True)])
    assert run(denoiser, state) <= 12


def test_random_reveal_reads_one_row_per_position_over_the_whole_decode():
    class Counting(SureModel):
        rows = 0

        def choose(self, rows, rule, uniforms, unconditional=None, counts=None, guided=None, certainty=None):
            Counting.rows += sum(counts)
            return super().choose(rows, rule, uniforms, unconditional, counts, guided, certainty)

    params = SamplingParams(max_new_tokens=256, steps=64, top_k=0, reveal="random", early_stop=False)
    denoiser, state = begin(Counting(), [canvas(2, 256)], [params])
    assert run(denoiser, state) == 64
    # The plain loop reads 64 x 256 rows; each position is read once here, when it is revealed.
    assert Counting.rows == 256 == sum(map(sum, state.reads))


def joint_counts(ids):
    key = (ids * (VOCABULARY ** torch.arange(ids.shape[1]))).sum(1)
    return np.unique(key.numpy(), return_counts=True)


@pytest.mark.parametrize(("reveal", "steps"), [("random", 3), ("random", 2), ("origin", 3)])
def test_what_is_drawn_up_front_has_the_law_of_the_step_by_step_loop(reveal, steps):
    class Few(SureModel):
        """Few likely tokens, so that whole answers repeat; a token depends on what stands around it."""

        def logits(self, rows):
            scores = super().logits(rows)
            scores[..., 11:] = -20.0
            return scores * 0.7

    count, pattern = 6000, "ab|___"
    laid = holes(pattern)
    params = [SamplingParams(max_new_tokens=3, steps=steps, top_k=0, reveal=reveal, seed=i) for i in range(count)]
    denoiser, state = begin(Few(), [laid] * count, params)
    run(denoiser, state)
    ids = torch.from_numpy(laid.ids).expand(count, -1).clone()
    generator = torch.Generator().manual_seed(17)
    if reveal == "random":
        fixed = torch.from_numpy(~laid.is_open).expand(count, -1)
        wanted, _ = random_reveal(logits_of(Few()), ids, fixed, MASK, steps=steps, temperature=1.0, top_p=1.0, generator=generator)
    else:
        wanted, _ = dream_reveal(logits_of(Few()), ids, MASK, steps=steps, rule=reveal, temperature=1.0, generator=generator)
    # Answers and the order in which their places were revealed are dependent; the answers alone show a wrong order or a wrong pass.
    assert homogeneity_z(state.ids[:, 2:], wanted[:, 2:]) < FALSE_ALARM_Z


def homogeneity_z(first, second):
    """Return how many deviations the chi-square of two samples of equal size lies above its mean; rare answers are pooled."""
    (a, na), (b, nb) = joint_counts(first), joint_counts(second)
    keys = np.union1d(a, b)
    x, y = np.zeros(len(keys)), np.zeros(len(keys))
    x[np.searchsorted(keys, a)], y[np.searchsorted(keys, b)] = na, nb
    is_rare = x + y < 20
    x, y = np.append(x[~is_rare], x[is_rare].sum()), np.append(y[~is_rare], y[is_rare].sum())
    kept = x + y > 0
    statistic, freedom = ((x - y)[kept] ** 2 / (x + y)[kept]).sum(), kept.sum() - 1
    assert freedom > 20
    return (statistic - freedom) / np.sqrt(2 * freedom)


def test_the_statistic_sees_a_pass_too_few():
    def sample(steps, seed):
        laid = holes("ab|___")
        params = [SamplingParams(max_new_tokens=3, steps=steps, top_k=0, reveal="random", seed=seed + i) for i in range(3000)]

        class Few(SureModel):
            def logits(self, rows):
                scores = super().logits(rows)
                scores[..., 11:] = -20.0
                return scores * 0.7

        denoiser, state = begin(Few(), [laid] * 3000, params)
        run(denoiser, state)
        return state.ids[:, 2:]

    assert homogeneity_z(sample(1, 0), sample(3, 10**6)) > 3 * FALSE_ALARM_Z
    assert homogeneity_z(sample(3, 0), sample(3, 10**6)) < FALSE_ALARM_Z


def test_noise_on_the_order_draws_without_replacement_from_its_softmax():
    class Fixed(SureModel):
        """Position i is i-th surest, whatever stands around it."""

        def logits(self, rows):
            position = rows[..., 3]
            scores = torch.zeros(*position.shape, VOCABULARY)
            return scores + torch.nn.functional.one_hot(torch.full_like(position, 9), VOCABULARY) * (6.0 - position[..., None])

    count = 8000
    params = [SamplingParams(max_new_tokens=4, steps=2, top_k=0, reveal="maskgit_plus", reveal_temperature=0.5, seed=i, temperature=0.0)
              for i in range(count)]  # fmt: skip
    denoiser, state = begin(Fixed(), [holes("ab|____")] * count, params)
    denoiser.step_(state)
    shown = state.first_set == 0
    # int(4 (1 - t_1 / t_0)) = int(4 x 0.4995) = 1: the first draw of the softmax alone.
    assert shown.sum(1).unique().tolist() == [1]
    wanted = (state.confidence[0] / 0.5).softmax(0)
    share = shown.float().mean(0)
    assert ((share - wanted).abs() < FALSE_ALARM_Z * (wanted * (1 - wanted) / count).sqrt()).all()


def test_what_has_nothing_hidden_is_refused():
    with pytest.raises(RequestError, match="canvas 0: no position is hidden"):
        begin(SureModel(), [canvas(2, 3, draft=[7, 8, 9])], [greedy()])
    with pytest.raises(RequestError, match="steps is 2, expected at least 3, one per block"):
        begin(SureModel(), [canvas(2, 12)], [greedy(reveal="transfer", steps=2, block_length=4)])
