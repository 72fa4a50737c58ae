"""The agreement report: its sums on scripted models, its verdict at the floor, and a real engine against itself."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch
from tiny_families import make_family
from tiny_simplex import make_tess

from lad_engine import Engine
from lad_engine.adapters.agreement import FLOOR, AgreementReport, PairedModel, save_agreement
from lad_engine.contracts import TokenChoice
from lad_engine.errors import ConfigError
from tiny_checkpoint import make_tiny

EOS = torch.tensor([9])


class ScriptedModel:
    """Answers with the next of its (tokens, confidences); its logits of a row are the row times `gain`."""

    def __init__(self, *answers: tuple[list[int], list[float]], gain: float = 1.0) -> None:
        self.answers, self.asked = list(answers), []
        self.head = SimpleNamespace(logits=lambda rows: rows * gain)

    def read_rows(self, ids, positions, lengths, unread=None):
        return torch.ones(*positions.shape, 2)

    def choose(self, rows, rule, uniforms, unconditional=None, counts=None, guided=None):
        self.asked.append((uniforms, unconditional, counts))
        tokens, confidences = self.answers.pop(0)
        return TokenChoice(torch.tensor([tokens]), torch.tensor([confidences]))


def take_step(pair: PairedModel, counted: list[bool], step: int, is_guided: bool = False) -> TokenChoice:
    positions = torch.arange(4)[None]
    rows = [pair.read_rows(positions, positions, (4,)) for _ in range(1 + is_guided)]
    choice = pair.choose(rows[0], None, "uniforms", rows[1] if is_guided else None, (4,))
    pair.count(torch.tensor([counted]), EOS, step)
    return choice


def test_tokens_confidences_and_logits_are_counted_where_they_are_read():
    exact = ScriptedModel(([1, 2, 9, 4], [0.9, 0.8, 0.7, 0.6]), ([1, 2, 9, 9], [0.9, 0.8, 0.7, 0.6]))
    quantised = ScriptedModel(([1, 3, 9, 5], [0.9, 0.5, 0.7, 0.0]), ([1, 2, 8, 9], [0.9, 0.8, 0.6, 0.6]), gain=1.5)
    pair = PairedModel(exact, quantised)
    assert take_step(pair, [True, True, True, False], 0).token.tolist() == [[1, 2, 9, 4]]
    take_step(pair, [True, True, True, True], 1, is_guided=True)
    totals = pair.totals()
    assert (totals["steps"], totals["positions"]) == (2, 7)
    assert totals["step_agreement"] == (2 / 3, 3 / 4) and totals["worst_step_agreement"] == 2 / 3
    assert totals["token_agreement"] == 5 / 7
    # Of 1, 2 in both steps; the other positions are end tokens.
    assert totals["text_agreement"] == 3 / 4
    assert totals["mean_confidence_difference"] == pytest.approx((0.3 + 0.1) / 7)
    assert totals["max_confidence_difference"] == pytest.approx(0.3)
    assert totals["mean_logit_difference"] == totals["max_logit_difference"] == 0.5
    # Both saw the same random numbers, guidance and counts.
    for mine, theirs in zip(exact.asked, quantised.asked, strict=True):
        assert mine[0] is theirs[0] and mine[2] == theirs[2] and (mine[1] is None) == (theirs[1] is None)


def test_two_batches_share_the_numbers_of_their_steps():
    answers = [([1, 1, 1, 1], [0.5] * 4)] * 3
    pair = PairedModel(ScriptedModel(*answers), ScriptedModel(*answers[:2], ([1, 1, 1, 2], [0.5] * 4)))
    for step in (0, 1, 0):
        take_step(pair, [True] * 4, step)
    assert pair.totals()["step_agreement"] == (7 / 8, 1.0)


def test_positions_that_were_not_read_do_not_count():
    pair = PairedModel(ScriptedModel(([1, 1, 1, 1], [0.5] * 4)), ScriptedModel(([1, 2, 2, 2], [0.5] * 4)))
    rows = pair.read_rows(None, torch.arange(4)[None], (4,))
    pair.choose(rows, None, None, None, (2,))
    pair.count(torch.ones(1, 4, dtype=torch.bool), EOS, 0)
    assert (pair.totals()["positions"], pair.totals()["token_agreement"]) == (2, 0.5)


def report(**changes) -> AgreementReport:
    names = {"adapter": "a", "base": "b", "base_fingerprint": "f", "precision": "int8", "dtype": "float32", "device": "cpu", "profile": "p"}
    figures = dict.fromkeys((field.name for field in dataclasses.fields(AgreementReport) if field.name not in (*names, "floor")), 1.0)
    return AgreementReport(**names, **{**figures, "step_agreement": (1.0,), **changes})


def test_below_the_floor_it_says_experimental():
    assert report(token_agreement=FLOOR).verdict == "holds"
    below = report(token_agreement=FLOOR - 1e-6)
    assert below.verdict == "experimental" and "int8 is experimental here" in below.sentence()
    assert json.loads(below.to_json())["verdict"] == "experimental"


def test_the_report_lies_beside_the_adapter(tmp_path):
    assert save_agreement(report(), tmp_path).name == "agreement_int8.json"
    place = save_agreement(report(), tmp_path / "adapter.safetensors")
    assert place.name == "adapter.agreement_int8.json"
    assert json.loads(place.read_text())["token_agreement"] == 1.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp("tiny"), "smollm2")


def test_an_engine_measures_itself_on_the_prompts_it_is_given(folder):
    engine = Engine.load(folder, adapter=None, precision="int8_weights", dtype="float32")
    params = engine.sampling("paper", max_new_tokens=8, steps=3, early_stop=False)
    got = engine.agreement(["One.", "Two words", "Three"], params, batch_size=2)
    assert (got.prompts, got.steps, got.positions) == (3, 3, 3 * 3 * 8)
    assert (got.precision, got.dtype, got.adapter, got.profile) == ("int8_weights", "float32", None, "paper")
    # Two random models would agree in one token of 320; the weights move by half a step of 127.
    assert 0.5 < got.token_agreement <= 1.0 and got.worst_step_agreement <= got.token_agreement
    assert 0 < got.mean_logit_difference < got.max_logit_difference < 1.0


def test_weights_that_are_not_rounded_agree_with_themselves(folder):
    engine = Engine.load(folder, adapter=None, precision="int8", dtype="float32")
    engine.model = Engine.load(folder, adapter=None, dtype="float32").model
    got = engine.agreement(["One."], engine.sampling("paper", max_new_tokens=8, steps=3))
    assert (got.token_agreement, got.text_agreement, got.max_logit_difference, got.max_confidence_difference) == (1.0, 1.0, 0.0, 0.0)


def test_auto_has_nothing_to_compare(folder):
    with pytest.raises(ConfigError, match=r"agreement: this engine's precision is auto, expected one to compare\. Load it with one"):
        Engine.load(folder, adapter=None).agreement()


@pytest.mark.parametrize(("family", "make"), [("masked", lambda folder: make_family(folder, "llada")), ("simplex", make_tess)])
def test_other_families_are_refused_in_one_sentence(family, make, tmp_path):
    engine = Engine.load(make(tmp_path / family), precision="int8_weights", dtype="float32")
    with pytest.raises(ConfigError, match=rf"^agreement: this engine decodes as {family}, expected lad\. Leave --agreement-report out\.$"):
        engine.agreement(["One."])
