"""The shipped adapter on its real base, in fp32: the engine's loop is the authors' loop token for token, alone and in a batch."""

from __future__ import annotations

import pytest
import torch
from authors_loop import authors_loop

from lad_engine import Engine
from lad_engine.samplers.token_rule import build_token_rule
from lad_engine.text.canvas import lay_out

PROMPTS = [
    "What is the capital of France?",
    "Name three fruits.",
    "Why is the sky blue?",
    "Tell me about tea.",
    'What is the opposite of "hot"?',
]
MODES = {
    "greedy, random noise": {"profile": "paper"},
    "noise-free": {"profile": "paper", "remasking": "none"},
    "confidence-guided": {"profile": "paper", "remasking": "confidence", "noise_schedule": "linear"},
    "retain editable": {"profile": "retain", "temperature": 0.0, "retention": "editable"},
    "retain locked": {"profile": "retain", "temperature": 0.0, "retention": "locked"},
}
SETTINGS = {"max_new_tokens": 16, "steps": 6}


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.load(dtype="float32")


def mode_params(engine: Engine, mode: str):
    return engine.sampling(MODES[mode]["profile"], **{k: v for k, v in MODES[mode].items() if k != "profile"}, **SETTINGS)


@pytest.mark.parametrize("mode", MODES)
def test_the_default_adapter_decodes_like_the_authors_loop(engine: Engine, mode: str):
    params = mode_params(engine, mode)
    rule = build_token_rule([params], engine.mask_id, engine.eos_ids, "cpu")

    def predict(ids: list[int], start: int, step: int) -> tuple[list[int], list[float]]:
        positions = torch.arange(start, len(ids))[None]
        uniforms = engine.ops.uniform(torch.tensor([params.seed]), torch.arange(len(ids) - start), torch.tensor(step), 0)
        choice = engine.model.choose(engine.model.read_rows(torch.tensor([ids]), positions, (len(ids),)), rule, uniforms)
        return choice.token[0].tolist(), choice.confidence[0].tolist()

    results = engine.generate(PROMPTS, params)
    for prompt, result in zip(PROMPTS, results, strict=True):
        canvas = lay_out(
            prompt, engine.codec, engine.adapter_facts, max_new_tokens=16, max_positions=engine.facts.max_positions, mask_id=engine.mask_id
        )
        fixed, answer = canvas.ids[: canvas.answer_start].tolist(), canvas.ids[canvas.answer_start :].tolist()
        with torch.inference_mode():
            wanted = authors_loop(predict, fixed, answer, [True] * 16, params, engine.mask_id, engine.eos_ids)
        assert list(result.token_ids) == wanted["states"][-1], (mode, prompt)
        assert result.nfe == len(wanted["states"])


def test_a_prompt_gets_the_same_tokens_alone_and_in_a_batch(engine: Engine):
    params = [engine.sampling("paper", max_new_tokens=8 + 5 * i, steps=4, seed=i, top_k=3) for i in range(3)]
    together = engine.generate(PROMPTS[:3], params)
    for prompt, one, result in zip(PROMPTS, params, together, strict=False):
        assert engine.generate(prompt, one)[0].token_ids == result.token_ids


def test_the_default_adapter_knows_the_capital_of_france(engine: Engine):
    assert "Paris" in engine.generate(PROMPTS[0])[0].text
