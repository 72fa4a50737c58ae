"""Likelihoods against plain computations: the causal sum, the masked estimate where it is exact, and its average."""

from __future__ import annotations

import math

import pytest
import torch

from lad_engine import Engine
from lad_engine.errors import RequestError
from lad_engine.evaluation.conditions import Condition
from lad_engine.evaluation.judge import Judge
from lad_engine.evaluation.likelihood import _hidden_tokens, exact, exact_single_tokens, masked
from lad_engine.evaluation.measure import likelihood_work
from lad_engine.evaluation.sets import Example
from lad_engine.evaluation.tasks import TASKS
from tiny_adapter import write_adapter
from tiny_checkpoint import make_tiny

FRONT, ANSWER = [1, 40, 41, 42], [50, 60, 70]


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp("base"), tie=True)


@pytest.fixture(scope="module")
def base(base_folder) -> Engine:
    return Engine.load(base_folder, adapter=None, mask_token=None)


@pytest.fixture(scope="module", params=[False, True], ids=["same position", "next position"])
def denoiser(request, base_folder, tmp_path_factory) -> Engine:
    adapter = write_adapter(base_folder, tmp_path_factory.mktemp("adapter") / "a.safetensors", predicts_next_token=request.param)
    return Engine.load(base_folder, adapter=adapter)


def test_the_exact_one_is_the_sum_over_growing_texts(base: Engine):
    def logp(ids: list[int]) -> torch.Tensor:
        with torch.inference_mode():
            return base.model.head.logits(base.model.transformer(torch.tensor([ids]), is_causal=True)[0, -1:]).log_softmax(-1)[0]

    wanted = sum(float(logp(FRONT + ANSWER[:index])[token]) for index, token in enumerate(ANSWER))
    total, is_best = exact(base, FRONT, ANSWER)
    assert total == pytest.approx(wanted, abs=1e-4)
    assert not is_best
    singles = [one for one, _ in exact_single_tokens(base, FRONT, [50, 51])]
    assert singles == pytest.approx([exact(base, FRONT, [50])[0], float(logp(FRONT)[51])], abs=1e-4)
    assert exact(base, FRONT, [int(logp(FRONT).argmax())])[1]


def test_one_token_needs_one_copy_and_has_the_decoders_probability(denoiser: Engine):
    ids = torch.tensor([[*FRONT, denoiser.mask_id, denoiser.eos_ids[0]]])
    logits = denoiser.model.head.logits(denoiser.model.read_rows(ids, torch.tensor([[len(FRONT)]]), (ids.shape[1],))[0])
    logits[:, denoiser.mask_id] = -torch.inf
    total, is_best = masked(denoiser, FRONT, [50], 8, "x")
    assert total == pytest.approx(float(logits.log_softmax(-1)[0, 50]), abs=1e-5)
    assert is_best == (int(logits.argmax()) == 50)


def test_the_estimate_depends_on_its_key_alone_and_settles_with_copies(denoiser: Engine):
    assert masked(denoiser, FRONT, ANSWER, 4, "x") == masked(denoiser, FRONT, ANSWER, 4, "x")
    assert masked(denoiser, FRONT, ANSWER, 4, "x")[0] != masked(denoiser, FRONT, ANSWER, 4, "y")[0]
    few = torch.tensor([masked(denoiser, FRONT, ANSWER, 2, f"{n}")[0] for n in range(6)])
    many = torch.tensor([masked(denoiser, FRONT, ANSWER, 16, f"{n}")[0] for n in range(6)])
    assert many.std() < few.std()
    assert math.isclose(float(few.mean()), float(many.mean()), abs_tol=4 * float(few.std()) / math.sqrt(6))


def test_copies_hide_every_number_of_tokens_alike():
    hidden = _hidden_tokens(5, 10, "key")
    assert sorted(hidden[:-1].sum(1).tolist()) == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert hidden[-1].all() and hidden.shape == (11, 5)


def test_what_does_not_fit_is_refused(base: Engine, denoiser: Engine):
    for score in (lambda: exact(base, [], ANSWER), lambda: exact(base, FRONT, []), lambda: masked(denoiser, [1] * 510, ANSWER, 2, "x")):
        with pytest.raises(RequestError, match="likelihood: "):
            score()


def test_a_question_beyond_the_window_is_read_by_its_end(base: Engine, denoiser: Engine):
    examples = [
        Example("short", "the sun and the sea", ("the user", "an answer"), 0),
        Example("long", "the sea " * 600, ("the sun", "a"), 1),
    ]
    for engine, way in ((base, "exact likelihood"), (denoiser, "masked likelihood")):
        short, long = likelihood_work(TASKS["arc_easy"], Condition(way, way, engine), examples, 2).answer(examples)
        assert short["tokens_cut"] == 0 < long["tokens_cut"] and all(math.isfinite(one) for one in long["options"])


def test_the_judge_reads_the_question_first(base: Engine):
    judge = Judge(base)
    loss, tokens = judge.score("the user", "is there")
    assert tokens == len(base.codec.encode("is there")) and loss > 0
    assert judge.score("an answer", "is there")[0] != loss
    assert judge.score("the user", "") == (0.0, 0)


def test_a_judge_without_a_chat_template_reads_the_question_as_a_line(base: Engine, monkeypatch):
    monkeypatch.setattr(base.codec, "has_chat_template", False)
    monkeypatch.setattr(base.codec, "_chat_source", None)
    ids = [base.codec.bos_id, *base.codec.encode("the user\n")]
    assert Judge(base).score("the user", "is there")[0] == -exact(base, ids, base.codec.encode("is there"))[0]
