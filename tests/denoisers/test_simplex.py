"""SimplexDenoiser against TESS 2's loop written out plainly, on a tiny checkpoint, and the promises every family makes."""

from __future__ import annotations

import dataclasses

import bench_on_path  # noqa: F401 - its import is its effect
import numpy as np
import pytest
import torch
from step_guard import guarded
from tiny_simplex import PAD_ID, make_tess
from torch.utils._python_dispatch import TorchDispatchMode

from bench.families.simplex_loop import LoopModel, tess_loop
from lad_engine.config import SamplingParams
from lad_engine.contracts import Canvas
from lad_engine.denoisers.simplex import SimplexDenoiser
from lad_engine.errors import ConfigError, RequestError
from lad_engine.kernels.random.reference import SAMPLE, SIMPLEX_NOISE, normal, uniform
from lad_engine.model.language_model import LanguageModel
from lad_engine.model.simplex_model import SimplexModel
from lad_engine.model.transformer import Transformer
from lad_engine.model.weights import open_checkpoint
from lad_engine.ops import select_ops
from lad_engine.runtime.readout import read_outcome
from lad_engine.runtime.runner import run

OPS = select_ops("reference")
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}


@pytest.fixture(scope="module")
def transformer(tmp_path_factory) -> Transformer:
    checkpoint = open_checkpoint(make_tess(tmp_path_factory.mktemp("tess") / "base", **SMALL))
    own = Transformer.from_tensors(checkpoint.facts, checkpoint.tensors(), OPS)
    own.head.predicts_next_token = checkpoint.facts.predicts_next_token
    return own


def denoiser_of(transformer, batch_invariant: bool = True, **settings) -> SimplexDenoiser:
    return SimplexDenoiser(SimplexModel(LanguageModel(transformer, batch_invariant)), OPS, **settings)


def canvas(prompt: int, answer: int, fixed: tuple[int, ...] = ()) -> Canvas:
    ids = np.array([10 + 3 * i for i in range(prompt)] + [PAD_ID] * answer)
    is_open = np.arange(prompt + answer) >= prompt
    for place in fixed:
        ids[prompt + place], is_open[prompt + place] = 50 + place, False
    return Canvas(ids, is_open, prompt)


def params(steps: int = 6, seed: int = 3, **settings) -> SamplingParams:
    return SamplingParams(**{"max_new_tokens": 8, "steps": steps, "top_p": 0.99, "seed": seed, **settings})


@torch.inference_mode()
def decoded(denoiser, canvases, each, is_static: bool = False):
    state = denoiser.begin(canvases, each, mask_id=PAD_ID, eos_ids=(2,), device="cpu")
    state.is_static = is_static
    if is_static:
        denoiser.prime_(state)
    run(denoiser, state)
    return state


def plain(transformer, request: Canvas, one: SamplingParams, **settings):
    """The plain loop over the same canvas with the numbers our generator draws; returns (ids, shifted logits and tokens by pass)."""
    L, V, start = request.length, transformer.facts.vocab_size, request.answer_start
    columns = torch.arange(L) - start
    seeds, inside = torch.full((L,), one.seed), columns.clamp(min=0)

    def noise(number):
        return normal(seeds, inside, torch.tensor(number), SIMPLEX_NOISE, V)[None]

    def draw(probabilities, number):
        u = uniform(seeds[:1], inside, torch.tensor(number), SAMPLE)[0]
        order = probabilities[0].double().sort(dim=1, descending=True, stable=True)
        rank = (order.values.cumsum(1) <= u[:, None] * order.values.sum(1, keepdim=True)).sum(1, keepdim=True)
        return order.indices.gather(1, rank)[None, :, 0]

    passes = []
    model = LoopModel(
        transformer.embed, transformer.time_embed, lambda x: transformer.head.logits(transformer(x[..., 0].long(), embedded=x)[0])[None]
    )
    out = tess_loop(
        model, torch.tensor(request.ids)[None], torch.tensor(request.is_open)[None], one.steps,
        top_p=one.top_p, noise=noise, draw=draw, on_step=lambda *step: passes.append(step), **settings,
    )  # fmt: skip
    return out[0], passes


@pytest.mark.parametrize("transition", ["ddpm", "ddim"])
@pytest.mark.parametrize("fixed", [(), (0, 4)], ids=["prefix", "infill"])
def test_every_pass_draws_the_tokens_of_the_plain_loop(transformer, transition, fixed):
    request, one = canvas(5, 9, fixed), params(transition=transition)
    denoiser = denoiser_of(transformer)
    with torch.inference_mode():
        wanted, passes = plain(transformer, request, one, use_ddim=transition == "ddim")
        state = denoiser.begin([request], [one], mask_id=PAD_ID, eos_ids=(2,), device="cpu")
        for number, _, token in passes:
            denoiser.step_(state)
            if number < one.steps - 1:
                assert torch.equal(state.answer[0][state.is_open[0]], token[0, 5:][state.is_open[0]]), number
    assert state.answer[0].tolist() == wanted[5:].tolist()
    assert state.ids[0].tolist() == wanted.tolist()


def test_supplied_noise_gives_the_same_decode_as_the_generators(transformer):
    request, one = canvas(4, 7), params()
    V = transformer.facts.vocab_size

    def noise(row, step):
        return normal(torch.full((7,), one.seed), torch.arange(7), torch.tensor(step), SIMPLEX_NOISE, V)

    assert torch.equal(
        decoded(denoiser_of(transformer, noise=noise), [request], [one]).answer, decoded(denoiser_of(transformer), [request], [one]).answer
    )


def test_position_zero_of_an_unprompted_canvas_has_equal_logits(transformer):
    request = Canvas(np.full(6, PAD_ID), np.ones(6, bool), 0)
    state = decoded(denoiser_of(transformer), [request], [params(steps=4)])
    # The argmax of equal logits is the lowest id, and its probability one of V.
    assert state.answer[0, 0] == 0 and len(state.answer[0, 1:].unique()) > 2
    assert float(state.confidence[0, 0]) == pytest.approx(1 / transformer.facts.vocab_size)


def test_temperature_zero_takes_the_most_probable_token_at_every_pass(transformer):
    request, one = canvas(5, 6), params(temperature=0.0)
    state = decoded(denoiser_of(transformer), [request], [one])
    again = decoded(denoiser_of(transformer), [request], [dataclasses.replace(one, top_p=0.2)])
    assert torch.equal(state.answer, again.answer)


class Oracle(SimplexModel):
    """Knows the answer: the logits of position j are far highest at truth[j]."""

    truth = torch.arange(100, 160)

    def logits(self, rows, positions):
        return torch.nn.functional.one_hot(self.truth[positions], self.transformer.facts.vocab_size) * 60.0


def test_an_oracle_is_believed_at_every_pass(transformer):
    model = Oracle(LanguageModel(transformer))
    one = params(steps=5)
    state = decoded(SimplexDenoiser(model, OPS), [canvas(5, 12), canvas(3, 4)], [one, one])
    assert state.answer[0].tolist() == Oracle.truth[5:17].tolist()
    assert state.answer[1, :4].tolist() == Oracle.truth[3:7].tolist()
    assert state.first_set[0].unique().tolist() == [0] and state.last_changed[0].unique().tolist() == [0]
    assert read_outcome(state, 0).nfe == 5 and float(state.confidence[0].min()) > 0.99


def test_a_request_alone_in_a_batch_and_captured_gives_the_same_tokens(transformer):
    requests = [canvas(5, 9), canvas(2, 14, (3,)), canvas(7, 3)]
    each = [params(seed=1), params(steps=3, seed=2, temperature=0.7), params(steps=8, seed=2**40 + 1, transition="ddim")]
    alone = [decoded(denoiser_of(transformer), [request], [one]) for request, one in zip(requests, each, strict=True)]
    batches = [decoded(denoiser_of(transformer), requests, each), decoded(denoiser_of(transformer, False), requests, each)]
    batches.append(decoded(denoiser_of(transformer), requests, each, is_static=True))
    for batch in batches:
        for row, (request, single) in enumerate(zip(requests, alone, strict=True)):
            assert batch.answer[row, : request.answer_length].tolist() == single.answer[0].tolist()
            assert read_outcome(batch, row).steps == each[row].steps
    backwards = decoded(denoiser_of(transformer), requests[::-1], each[::-1])
    assert torch.equal(backwards.answer.flip(0), batches[0].answer)


@pytest.mark.parametrize("transition", ["ddpm", "ddim"])
@pytest.mark.parametrize("is_static", [False, True])
def test_a_step_reads_nothing_on_the_host_and_grows_nothing(transformer, is_static, transition):
    denoiser = denoiser_of(transformer)
    with torch.inference_mode():
        each = [params(transition=transition), params(steps=3)]
        state = denoiser.begin([canvas(5, 9), canvas(2, 6)], each, mask_id=PAD_ID, eos_ids=(2,), device="cpu")
        state.is_static = is_static
        denoiser.prime_(state)
        pointers, calls = addresses(state), set()
        for _ in range(6):
            with guarded() as guard:
                denoiser.step_(state)
            calls.add(guard.calls)
    assert len(calls) == 1 and addresses(state) == pointers and bool(state.done.all())


def addresses(state) -> dict[str, int]:
    parts = {**vars(state), **vars(state.tables), **vars(state.rule)}
    return {name: value.data_ptr() for name, value in parts.items() if isinstance(value, torch.Tensor)}


def test_steps_after_the_end_change_nothing(transformer):
    denoiser = denoiser_of(transformer)
    state = decoded(denoiser, [canvas(5, 9), canvas(4, 5)], [params(steps=2), params(steps=4)])
    names = ("answer", "confidence", "first_set", "last_changed", "nfe", "row_steps", "soft", "ids")
    before = {name: getattr(state, name).clone() for name in names}
    with torch.inference_mode():
        denoiser.step_(state)
    assert all(torch.equal(getattr(state, name), value) for name, value in before.items())
    assert state.nfe.tolist() == [2, 4]


class LargestOutput(TorchDispatchMode):
    """Notes the most elements any operation returned."""

    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(one, torch.Tensor):
                self.most = max(self.most, one.numel())
        return out


def test_no_pass_holds_a_number_per_position_and_vocabulary_entry(transformer, monkeypatch):
    monkeypatch.setattr("lad_engine.model.simplex_model.ROWS_PER_CHUNK", 4)
    denoiser, rows, V = denoiser_of(transformer, batch_invariant=False), 96, transformer.facts.vocab_size
    with torch.inference_mode():
        state = denoiser.begin([canvas(4, rows)], [params(steps=3)], mask_id=PAD_ID, eos_ids=(2,), device="cpu")
        denoiser.prime_(state)
        with LargestOutput() as seen:
            denoiser.step_(state)
    held = {name: one.numel() for name, one in vars(state).items() if isinstance(one, torch.Tensor)}
    assert max(held.values()) < rows * V > seen.most and state.noise is None


def test_drawn_tokens_follow_the_filtered_distribution(transformer):
    # One pass from the same noise, 1500 draws: chi-square against the nucleus of the logits, false alarm 1e-6.
    request, draws = canvas(4, 1), 1500
    one = params(steps=2, top_p=0.9)
    V = transformer.facts.vocab_size

    def noise(row, step):
        return normal(torch.tensor([5]), torch.tensor([0]), torch.tensor(step), SIMPLEX_NOISE, V)

    denoiser = denoiser_of(transformer, batch_invariant=False, noise=noise)
    with torch.inference_mode():
        each = [dataclasses.replace(one, seed=seed) for seed in range(draws)]
        state = denoiser.begin([request] * draws, each, mask_id=PAD_ID, eos_ids=(2,), device="cpu")
        denoiser.step_(state)
        loop_noise = dataclasses.replace(one, seed=5)
        logits = plain(transformer, request, loop_noise)[1][0][1][0, 4]
    p, order = logits.softmax(0).sort(descending=True)
    kept = p.cumsum(0) - p <= 0.9
    expected = torch.zeros(V).index_put((order,), torch.where(kept, p, 0.0))
    expected = draws * expected / expected.sum()
    counts = torch.bincount(state.answer[:, 0], minlength=V).float()
    assert counts[expected == 0].sum() == 0
    common = expected >= 5
    rest = (expected[~common].sum(), counts[~common].sum())
    chi = float(((counts - expected)[common] ** 2 / expected[common]).sum() + (rest[1] - rest[0]) ** 2 / max(rest[0], 1))
    freedom = int(common.sum())
    # The normal approximation of chi-square at one in a million.
    assert chi < freedom + 4.9 * (2 * freedom) ** 0.5 + 16


def test_what_makes_no_sense_is_refused(transformer):
    denoiser = denoiser_of(transformer)
    draft = Canvas(np.array([10, 11, 12]), np.array([False, True, True]), 1)
    with pytest.raises(RequestError, match="prompt 0: it brings a draft"):
        decoded(denoiser, [draft], [params()])
    with pytest.raises(RequestError, match="prompt 0: the canvas has no open position"):
        decoded(denoiser, [Canvas(np.array([10, 11]), np.zeros(2, bool), 1)], [params()])
    with pytest.raises(ConfigError, match="reward_scale is given, but the engine has no reward model"):
        decoded(denoiser, [canvas(2, 2)], [params(reward_scale=1.0)])
