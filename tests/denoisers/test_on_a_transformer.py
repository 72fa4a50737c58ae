"""The same promises with a real (tiny, random) transformer behind the denoiser."""

from __future__ import annotations

import pytest
import torch
from authors_loop import SAMPLE, authors_loop, choose, philox_uniform
from option_sets import params_of
from step_guard import guarded
from stub_model import canvas

from lad_engine.denoisers.lad import LadDenoiser
from lad_engine.model.language_model import LanguageModel
from lad_engine.model.transformer import Transformer
from lad_engine.model.weights import open_checkpoint
from lad_engine.ops import select_ops
from lad_engine.runtime.runner import steps
from tiny_checkpoint import make_tiny

MASK, EOS_IDS = 3, (2,)
NAMES = ["greedy", "noise_free", "weighted_split", "random_permanent", "retain_editable", "retain_locked", "window", "llada_blocks"]


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny") / "base"
    make_tiny(folder, family="llama")
    checkpoint = open_checkpoint(folder)
    return LanguageModel(Transformer.from_tensors(checkpoint.facts, checkpoint.tensors(), select_ops("reference")), True)


def predict_with(model, params):
    def predict(ids, start, step):
        rows = model.head.row_of(torch.arange(start, len(ids)))
        logits = model.head.logits(model.hidden(torch.tensor([ids]))[0][rows]).tolist()
        draws = [philox_uniform(params.seed, r, step, SAMPLE) for r in range(len(rows))]
        pairs = [choose(row, u, params, MASK, EOS_IDS) for row, u in zip(logits, draws, strict=True)]
        return [token for token, _ in pairs], [confidence for _, confidence in pairs]

    return predict


@pytest.mark.parametrize("shifts", [False, True], ids=["same_position", "next_position"])
@pytest.mark.parametrize("name", NAMES)
def test_a_transformer_decodes_like_the_authors_loop(language_model, name, shifts):
    language_model.head.predicts_next_token = shifts
    denoiser, params, request = LadDenoiser(language_model, select_ops("reference")), params_of(name, steps=5), canvas()
    with torch.inference_mode():
        state = denoiser.begin([request], [params], mask_id=MASK, eos_ids=EOS_IDS, device="cpu")
        states = [state.answer[0].tolist() for _ in steps(denoiser, state)]
        prompt, answer = request.ids[:4].tolist(), request.ids[4:].tolist()
        wanted = authors_loop(predict_with(language_model, params), prompt, answer, [True] * 12, params, MASK, EOS_IDS)
    assert states == wanted["states"]


@pytest.mark.parametrize("name", ["greedy", "weighted_split", "retain_split", "window", "guided", "unfiltered"])
def test_the_whole_step_with_its_model_reads_nothing_on_the_host(language_model, name):
    denoiser = LadDenoiser(language_model, select_ops("reference"))
    with torch.inference_mode():
        state = denoiser.begin([canvas(), canvas(2, 9)], [params_of(name)] * 2, mask_id=MASK, eos_ids=EOS_IDS, device="cpu")
        with guarded() as guard:
            denoiser.step_(state)
            denoiser.step_(state)
    assert guard.calls > 100 and state.taken_steps == 2


def test_rows_that_are_done_and_columns_off_the_canvas_cost_nothing_and_change_nothing(language_model, monkeypatch):
    language_model.head.predicts_next_token = False
    denoiser = LadDenoiser(language_model, select_ops("reference"))
    requests = [canvas(4, 40), canvas(2, 9), canvas(3, 70)]
    params = [params_of("greedy", max_new_tokens=40, steps=2, early_stop=False), params_of("guided", max_new_tokens=9, steps=3)]
    params.append(params_of("window", max_new_tokens=70, steps=4, tokens_per_step=30))

    def begin():
        return denoiser.begin(requests, params, mask_id=MASK, eos_ids=EOS_IDS, device="cpu")

    with torch.inference_mode():
        unread = begin()
        for _ in range(unread.max_steps):
            denoiser.step_(unread)
        canvases, chunks, normed = [], [], language_model.head.normed
        hook = language_model.transformer.register_forward_pre_hook(lambda _, args: canvases.append(args[0].shape[1]))
        monkeypatch.setattr(language_model.head, "normed", lambda rows: (chunks.append(len(rows)), normed(rows))[1])
        resting = begin()
        taken = []
        for _ in steps(denoiser, resting):
            taken.append((list(canvases), list(chunks)))
            canvases.clear()
            chunks.clear()
        hook.remove()
    # The second request is forwarded twice a step (guidance), and the head reads its rows twice, those of the others once.
    assert [canvases for canvases, _ in taken] == [[44, 11, 33, 11], [44, 11, 63, 11], [11, 73, 11], [73]]
    assert [chunks for _, chunks in taken] == [[40, 9, 9, 30], [40, 9, 9, 60], [9, 9, 70], [70]]
    for name in ("answer", "confidence", "first_set", "last_changed", "nfe", "row_steps", "done", "ids"):
        assert torch.equal(getattr(unread, name), getattr(resting, name)), name
