"""The step contract: static, in place, and a no-op for rows that are done."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from option_sets import OPTION_SETS, params_of
from step_guard import guarded
from stub_model import EOS, MASK, OPS, StubModel, canvas

from lad_engine.denoisers.lad import LadDenoiser
from lad_engine.runtime.runner import run


def begin(denoiser, canvases, params):
    return denoiser.begin(canvases, params, mask_id=MASK, eos_ids=(EOS,), device="cpu")


def tensors(state):
    """Every buffer and table of a state, by name."""
    out = {}
    for name, value in vars(state).items():
        parts = vars(value) if dataclasses.is_dataclass(value) else {"": value}
        out.update({f"{name}.{key}": part for key, part in parts.items() if isinstance(part, torch.Tensor)})
    return out


@pytest.mark.parametrize("name", OPTION_SETS)
def test_a_step_reads_nothing_on_the_host_and_grows_nothing(name):
    denoiser = LadDenoiser(StubModel(), OPS)
    params = params_of(name, early_stop=False)
    state = begin(denoiser, [canvas(), canvas(2, 9)], [params, params])
    pointers = {key: value.data_ptr() for key, value in tensors(state).items()}
    calls = set()
    for _ in range(params.steps):
        with guarded() as guard:
            denoiser.step_(state)
        calls.add(guard.calls)
    assert len(calls) == 1
    assert pointers == {key: value.data_ptr() for key, value in tensors(state).items()}
    assert bool(state.done.all())


def test_the_guard_sees_what_it_forbids():
    x = torch.arange(4)
    reads = (lambda: x.tolist(), lambda: x.sum().item(), lambda: bool(x.any()), lambda: x.nonzero())
    shapes = (lambda: x[x > 1], lambda: torch.nonzero(x), lambda: torch.masked_select(x, x > 1))
    for forbidden in reads + shapes:
        with pytest.raises(AssertionError, match="step:"), guarded():
            forbidden()


@pytest.mark.parametrize("name", ["random", "weighted_split", "retain_locked", "llada_blocks", "window"])
def test_steps_after_the_end_change_nothing(name):
    denoiser = LadDenoiser(StubModel(), OPS)
    short, long = params_of(name, steps=6), params_of("noise_free", steps=14)
    state = begin(denoiser, [canvas(), canvas()], [short, long])
    for _ in range(6):
        denoiser.step_(state)
    assert state.done.tolist()[0]
    skipped = {"before.", "acted.", "step.", "predicted.", "ids."}
    end = {key: value.clone() for key, value in tensors(state).items()}
    run(denoiser, state)
    denoiser.step_(state)
    for key, value in tensors(state).items():
        if key not in skipped and value.dim() and value.shape[0] == 2:
            assert torch.equal(value[0], end[key][0]), key
    assert torch.equal(state.ids[0], end["ids."][0]) and torch.equal(state.predicted[0], end["predicted."][0])


def test_a_mixed_batch_gives_each_request_the_states_it_has_alone():
    model = StubModel()
    denoiser = LadDenoiser(model, OPS)
    names = list(OPTION_SETS)
    requests = [canvas(2 + i % 5, 8 + i % 6) for i in range(len(names))]
    params = [params_of(name, max_new_tokens=8 + i % 6, steps=5 + i % 3, seed=i * 7919) for i, name in enumerate(names)]
    together = begin(denoiser, requests, params)
    alone = [begin(denoiser, [one], [rule]) for one, rule in zip(requests, params, strict=True)]
    for _ in range(together.max_steps):
        denoiser.step_(together)
        for b, state in enumerate(alone):
            denoiser.step_(state)
            A = requests[b].answer_length
            for buffer in ("answer", "predicted", "confidence", "first_set", "last_changed", "retained"):
                assert torch.equal(getattr(together, buffer)[b, :A], getattr(state, buffer)[0]), (names[b], buffer)
            for buffer in ("done", "nfe", "row_steps", "stopped_early"):
                assert torch.equal(getattr(together, buffer)[b], getattr(state, buffer)[0]), (names[b], buffer)
            assert torch.equal(together.ids[b, : requests[b].length], state.ids[0])


def test_the_slot_of_a_request_does_not_matter():
    denoiser = LadDenoiser(StubModel(), OPS)
    requests, params = [canvas(), canvas(6, 20), canvas(1, 3)], [params_of(name) for name in ("weighted", "clusters", "random")]
    forward, backward = begin(denoiser, requests, params), begin(denoiser, requests[::-1], params[::-1])
    run(denoiser, forward)
    run(denoiser, backward)
    assert torch.equal(forward.answer, backward.answer.flip(0))
