"""The rollout call: token ids in, token ids and forward passes out, as LLaDA's `generate` has it."""

from __future__ import annotations

import pytest
import torch
from backend_kit import tiny_engine
from tiny_families import make_family

from lad_engine import Engine
from lad_engine.backend import SyncEngine
from lad_engine.backend.engine_parts import EngineParts
from lad_engine.backend.rl import generate
from lad_engine.errors import ConfigError, RequestError
from lad_engine.text.prompts import Prompt


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return tiny_engine(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    return Engine.load(make_family(tmp_path_factory.mktemp("llada"), "llada"), dtype="float32")


def test_it_is_the_engines_own_decoding_of_those_tokens(engine):
    settings = {"max_new_tokens": 12, "steps": 6, "block_length": 4, "temperature": 0.8, "top_k": 0}
    params = engine.sampling("paper", remasking="transfer", seed=6, **settings)
    asked = Prompt("the user is in", format="raw")
    canvas = EngineParts(engine).canvas(asked, params, None)
    prompt = torch.from_numpy(canvas.ids[None, : canvas.answer_start]).repeat(2, 1)
    output, nfe = generate(engine, prompt, steps=6, gen_length=12, block_length=4, temperature=0.8, seed=5)
    assert output.shape == (2, prompt.shape[1] + 12) and output.dtype == torch.int64
    assert torch.equal(output[:, : prompt.shape[1]], prompt) and nfe == 6
    assert engine.mask_id not in output[:, prompt.shape[1] :]
    wanted = engine.generate(asked, params)[0]
    assert tuple(output[1, prompt.shape[1] :].tolist()) == wanted.token_ids
    assert not torch.equal(output[0], output[1]), "rows draw from seeds of their own"


def test_padding_is_left_out_and_one_prompt_may_be_flat(engine):
    ids = torch.tensor(engine.codec.encode("the user"))
    padded = torch.cat([torch.zeros(5, dtype=torch.int64), ids])
    with SyncEngine(engine) as backend:
        plain, _ = generate(backend, ids, steps=4, gen_length=8, block_length=8)
        left, _ = generate(
            backend, padded[None], steps=4, gen_length=8, block_length=8, attention_mask=torch.arange(len(padded))[None] >= 5
        )
        assert plain.dim() == 1 and torch.equal(plain[-8:], left[0, -8:])
        assert torch.equal(left[0, : len(padded)], padded)
        assert backend.stats().finished == 2


def test_a_threshold_saves_forward_passes(engine, masked):
    for model in (engine, masked):
        prompt = torch.tensor([model.codec.encode("the user is")])
        slow, many = generate(model, prompt, steps=8, gen_length=8, block_length=4)
        fast, few = generate(model, prompt, steps=8, gen_length=8, block_length=4, threshold=0.0)
        assert slow.shape == fast.shape and many == 8 and few == 2
        assert model.mask_id not in fast
    with pytest.raises(ConfigError, match=r"factor is 1\.0, expected it only with reveal transfer"):
        generate(engine, prompt, steps=8, gen_length=8, factor=1.0)


def test_wrong_arguments_are_named(engine):
    with pytest.raises(ConfigError, match="remasking is 'high'"):
        generate(engine, torch.tensor([[5, 6]]), remasking="high")
    with pytest.raises(RequestError, match=r"\[B, L\] token ids"):
        generate(engine, torch.rand(2, 3))
    with pytest.raises(RequestError, match=r"attention_mask: \(1, 3\), expected \(1, 2\)"):
        generate(engine, torch.tensor([[5, 6]]), attention_mask=torch.ones(1, 3))
    with pytest.raises(RequestError, match="window"):
        generate(engine, torch.tensor([[5, 6]]), gen_length=600)
