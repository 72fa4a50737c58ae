"""The autoregressive baseline: transformers' tokens, a static step, and rows that know nothing of each other."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from step_guard import guarded
from transformers import AutoModelForCausalLM

from lad_engine.config import AUTOREGRESSIVE_DEFAULTS, SamplingParams
from lad_engine.denoisers.autoregressive import AutoregressiveDecoder
from lad_engine.errors import RequestError
from lad_engine.model.causal_model import CausalModel
from lad_engine.model.transformer import Transformer
from lad_engine.model.weights import open_checkpoint
from lad_engine.ops import select_ops
from lad_engine.runtime.runner import run
from tiny_checkpoint import FAMILIES, make_tiny

PROMPTS = [list(range(5, 25)), list(range(40, 47)), [9]]
SAMPLED = {"temperature": 0.9, "top_k": 0, "confidence": "kept"}


def params(count: int, seed: int = 0, **settings) -> SamplingParams:
    return SamplingParams(max_new_tokens=count, seed=seed, **{**AUTOREGRESSIVE_DEFAULTS, **settings})


def load(folder, family: str, batch_invariant: bool = True, ops: str = "auto") -> AutoregressiveDecoder:
    make_tiny(folder, family=family)
    checkpoint, ops = open_checkpoint(folder), select_ops(ops)
    return AutoregressiveDecoder(CausalModel(Transformer.from_tensors(checkpoint.facts, checkpoint.tensors(), ops), batch_invariant), ops)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory) -> AutoregressiveDecoder:
    return load(tmp_path_factory.mktemp("base"), "llama")


@torch.inference_mode()
def decoded(decoder, prompts, each, stop_ids=(), is_static=False, capacity=None):
    state = decoder.begin(prompts, each, stop_ids=stop_ids, device="cpu", capacity=capacity)
    state.is_static = is_static
    run(decoder, state)
    return state


def tokens(state, row: int) -> list[int]:
    return state.answer[row, : int(state.answer_length[row])].tolist()


@pytest.mark.parametrize("batch_invariant", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_are_those_of_transformers(tmp_path, family, batch_invariant):
    decoder = load(tmp_path, family, batch_invariant)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    counts, eos = (14, 9, 20), open_checkpoint(tmp_path).facts.eos_ids
    state = decoded(decoder, PROMPTS, [params(count) for count in counts], stop_ids=eos)
    for row, (prompt, count) in enumerate(zip(PROMPTS, counts, strict=True)):
        wanted = theirs.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=count, pad_token_id=0)[0, len(prompt) :]
        assert tokens(state, row) == wanted.tolist()
        assert int(state.nfe[row]) == len(wanted)


@pytest.mark.parametrize("is_static", [False, True])
@pytest.mark.parametrize("batch_invariant", [True, False])
def test_a_step_reads_nothing_on_the_host_and_grows_nothing(decoder, batch_invariant, is_static):
    own = AutoregressiveDecoder(CausalModel(decoder.model.transformer, batch_invariant), decoder.ops)
    with torch.inference_mode():
        state = own.begin(
            PROMPTS, [params(8), params(3, seed=4, **SAMPLED), params(8, top_p=0.8, temperature=1.0)], stop_ids=(2,), device="cpu"
        )
        state.is_static = is_static
        pointers = addresses(state)
        calls = set()
        for _ in range(7):
            with guarded() as guard:
                own.step_(state)
            calls.add(guard.calls)
    assert len(calls) == 1
    assert addresses(state) == pointers
    assert bool(state.done.all())


def addresses(state) -> dict[str, int]:
    every = {**vars(state), **{f"cache.{name}": value for name, value in vars(state.cache).items()}, **vars(state.rule)}
    return {name: value.data_ptr() for name, value in every.items() if isinstance(value, torch.Tensor)}


def test_a_request_has_the_same_bits_alone_and_in_a_batch(decoder):
    each = [params(12, seed=7, **SAMPLED), params(7, seed=8, **SAMPLED), params(15, seed=9, temperature=1.1, top_p=0.9)]
    together = decoded(decoder, PROMPTS, each)
    for row, (prompt, one) in enumerate(zip(PROMPTS, each, strict=True)):
        alone = decoded(decoder, [prompt], [one])
        assert tokens(alone, 0) == tokens(together, row)
        length = int(alone.answer_length[0])
        assert torch.equal(alone.confidence[0, :length], together.confidence[row, :length])


def test_seeds_and_positions_draw_apart(decoder):
    runs = [tuple(tokens(decoded(decoder, PROMPTS[:1], [params(12, seed=seed, temperature=2.0, top_k=0)]), 0)) for seed in range(4)]
    assert len(set(runs)) == 4
    assert all(len(set(run)) > 3 for run in runs)


@pytest.mark.parametrize("capacity", [None, 64])
@pytest.mark.parametrize("batch_invariant", [True, False])
def test_the_static_form_chooses_the_same_tokens(decoder, batch_invariant, capacity):
    own = AutoregressiveDecoder(CausalModel(decoder.model.transformer, batch_invariant), decoder.ops)
    each = [params(12), params(7, seed=8, **SAMPLED), params(15, seed=9, temperature=1.1, top_p=0.9)]
    eager = decoded(own, PROMPTS, each)
    static = decoded(own, PROMPTS, each, is_static=True, capacity=capacity)
    assert torch.equal(eager.answer, static.answer)
    assert torch.allclose(eager.confidence, static.confidence, atol=1e-5)


def test_more_rows_than_the_few_row_op_takes_give_the_same_tokens(decoder):
    own = AutoregressiveDecoder(CausalModel(decoder.model.transformer, batch_invariant=False), decoder.ops)
    prompts = [PROMPTS[row % 3] for row in range(9)]
    state = decoded(own, prompts, [params(6)] * 9)
    assert [tokens(state, row) for row in range(9)] == [tokens(decoded(decoder, [prompt], [params(6)]), 0) for prompt in prompts]


def test_an_end_token_ends_its_row_and_nothing_changes_after(decoder):
    free = decoded(decoder, PROMPTS, [params(10)] * 3)
    end = tokens(free, 0)[4]
    first = tokens(free, 0).index(end)
    state = decoded(decoder, PROMPTS, [params(10)] * 3, stop_ids=(end,))
    assert tokens(state, 0) == tokens(free, 0)[: first + 1]
    assert (int(state.nfe[0]), bool(state.stopped_early[0])) == (first + 1, True)
    before = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    before = {name: value.clone() for name, value in before.items() if isinstance(value, torch.Tensor) and name not in ("step", "acted")}
    with torch.inference_mode():
        decoder.step_(state)
    for name, value in before.items():
        assert torch.equal(getattr(state, name), value), name


def test_one_token_needs_the_pass_over_the_prompt_alone(decoder):
    state = decoder.begin(PROMPTS, [params(1)] * 3, stop_ids=(), device="cpu")
    assert bool(state.done.all()) and state.nfe.tolist() == [1, 1, 1]
    assert state.first_set.tolist() == state.last_changed.tolist() == [[0], [0], [0]]


def test_suppressed_tokens_are_never_chosen(decoder):
    free = tokens(decoded(decoder, PROMPTS[:1], [params(6)]), 0)
    other = tokens(decoded(decoder, PROMPTS[:1], [params(6, suppress_tokens=tuple(free))]), 0)
    assert not set(free) & set(other)


@pytest.mark.parametrize(
    ("prompts", "count", "capacity", "words"),
    [
        ([], 1, None, "0 prompts with 1 SamplingParams"),
        ([[]], 1, None, "prompt 0: it has no token"),
        ([[1, 2]], 1, 9, "the cache has 9 positions, expected at least 10"),
    ],
)
def test_what_cannot_be_decoded_is_refused(decoder, prompts, count, capacity, words):
    with pytest.raises(RequestError, match=words):
        decoder.begin(prompts, [params(8)] * count, stop_ids=(), device="cpu", capacity=capacity)
