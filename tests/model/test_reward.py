"""Reward guidance: the closed form equals autograd's, it raises the reward, and it reads the last real token."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tiny_simplex import make_reward, make_tess

from lad_engine.config import SamplingParams
from lad_engine.contracts import SoftInput
from lad_engine.errors import CheckpointError
from lad_engine.model.reward import RewardModel
from lad_engine.ops import select_ops

V, R, START = 320, 5, 4
EOS = torch.tensor([2])


@pytest.fixture(scope="module")
def reward(tmp_path_factory) -> RewardModel:
    folder = make_reward(tmp_path_factory.mktemp("reward") / "rm")
    return RewardModel.open(folder, select_ops("reference"), torch.float32, "cpu", V)


def parts(fixed: int | None = None):
    """A prompt of four ids and five answer positions, one of them perhaps fixed."""
    ids = torch.tensor([1, 30, 31, 32, 40, 41, 42, 43, 44])
    column = (torch.arange(9) - START).clamp(0, R - 1)
    is_soft = torch.arange(9) >= START
    if fixed is not None:
        is_soft[START + fixed] = False
    return ids, SoftInput(torch.empty(0), column, is_soft, torch.empty(0)), torch.tensor(START), torch.tensor(9)


def logits_of(seed: int = 0) -> torch.Tensor:
    return 2.0 * torch.randn(R, V, generator=torch.Generator().manual_seed(seed))


def asked(**settings) -> SamplingParams:
    return SamplingParams(**{"reward_scale": 3.0, **settings})


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_one_step_is_the_gradient_of_the_expected_embeddings_reward(reward, temperature):
    ids, soft, start, end = parts(fixed=1)
    logits = logits_of().requires_grad_()
    mean = torch.softmax(logits / temperature, 1) @ reward.transformer.embed
    x = torch.where(soft.is_soft[:, None], mean[soft.column], reward.transformer.embed[ids])
    gradient = torch.autograd.grad(reward.reward(x, end - 1), logits)[0]
    with torch.inference_mode():
        steered = reward.steer(logits.detach(), ids, soft, start, end, EOS, asked(reward_temperature=temperature))
    assert float(gradient.abs().max()) > 1e-5
    assert torch.allclose(steered, logits.detach() + 3.0 * gradient, atol=2e-6)
    # A fixed position is no variable.
    assert torch.equal(steered[1], logits[1].detach())


def test_hard_guidance_reads_the_most_probable_tokens_and_keeps_the_soft_jacobian(reward):
    ids, soft, start, end = parts()
    logits = logits_of().requires_grad_()
    p = torch.softmax(logits, 1)
    best = torch.nn.functional.one_hot(logits.argmax(1), V) - p.detach() + p
    x = torch.cat([reward.transformer.embed[ids[:START]], best @ reward.transformer.embed])
    gradient = torch.autograd.grad(reward.reward(x, end - 1), logits)[0]
    steered = reward.steer(logits.detach(), ids, soft, start, end, EOS, asked(reward_hard=True))
    assert torch.allclose(steered, logits.detach() + 3.0 * gradient, atol=2e-6)


def test_more_steps_raise_the_reward_further(reward):
    ids, soft, start, end = parts()

    def judged(logits):
        mean = logits.softmax(1) @ reward.transformer.embed
        return float(reward.reward(torch.cat([reward.transformer.embed[ids[:START]], mean]), end - 1))

    logits = logits_of(3)
    found = [judged(logits)]
    for steps in (1, 3, 9):
        found.append(judged(reward.steer(logits, ids, soft, start, end, EOS, asked(reward_scale=0.3, reward_steps=steps))))
    assert found == sorted(found) and found[-1] > found[0]


def test_the_reward_is_read_at_the_first_end_token_and_by_the_reference_rule_at_the_window(reward):
    ids, soft, start, end = parts()
    logits = logits_of(1)
    logits[2, 2] = 50.0
    plain = reward.steer(logits, ids, soft, start, end, EOS, asked())
    # Nothing behind the end token can matter to a causal model that is read there.
    assert torch.equal(plain[3:], logits[3:]) and not torch.equal(plain[:2], logits[:2])
    compat = reward.steer(logits, ids, soft, start, end, EOS, asked(reward_rule="reference"))
    assert not torch.equal(compat[3:], logits[3:])


def test_gradients_pile_up_by_the_reference_rule_only(reward):
    ids, soft, start, end = parts()
    logits = logits_of(2)
    fresh, piled = (
        reward.steer(logits, ids, soft, start, end, EOS, asked(reward_scale=1e-3, reward_steps=3, reward_rule=rule)) - logits
        for rule in ("last_token", "reference")
    )
    # With steps this small the gradient hardly changes: 1 + 1 + 1 against 1 + 2 + 3 of them.
    assert torch.allclose(piled, 2 * fresh, atol=1e-2 * float(piled.abs().max()) + 2e-6)


def test_what_is_no_reward_model_of_this_family_is_refused(tmp_path, reward):
    ops = select_ops("reference")
    with pytest.raises(CheckpointError, match=r"score\.weight is missing, expected \(1, 64\)"):
        RewardModel.open(make_tess(tmp_path / "tess"), ops, torch.float32, "cpu", V)
    with pytest.raises(CheckpointError, match=r"vocab_size is 320, expected 321, the guided model's"):
        RewardModel.open(make_reward(tmp_path / "rm"), ops, torch.float32, "cpu", V + 1)


def test_parameters_without_guidance_have_no_settings_of_it():
    assert dataclasses.replace(SamplingParams(), seed=1).reward_scale == 0
