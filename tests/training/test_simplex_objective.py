"""TESS 2's objective against its formula, its spans, and a run whose adapter decodes as simplex."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from tiny_data import write_examples

from lad_engine import Engine
from lad_engine.kernels.random.reference import CORRUPT_SIMPLEX, normal
from lad_engine.model.language_model import LanguageModel
from lad_engine.model.transformer import Transformer
from lad_engine.model.weights import open_checkpoint
from lad_engine.ops import select_ops
from lad_engine.schedules.gaussian import signal_share
from lad_engine.schedules.spans import draw_spans, prefix_length, random_spans
from lad_engine.train import main
from lad_engine.training.config import TrainConfig
from lad_engine.training.gradients import differentiable
from lad_engine.training.objectives.objective import CleanBatch, Setting
from lad_engine.training.objectives.simplex import SimplexObjective, open_time_vector
from tiny_checkpoint import make_tiny

OPS = differentiable(select_ops("reference"))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> LanguageModel:
    checkpoint = open_checkpoint(make_tiny(tmp_path_factory.mktemp("simplex") / "base"))
    transformer = Transformer.from_tensors(checkpoint.facts, checkpoint.tensors(), OPS)
    transformer.head.predicts_next_token = True
    with torch.no_grad():
        open_time_vector(transformer).normal_()
    return LanguageModel(transformer)


def objective_of(**changes) -> SimplexObjective:
    config = TrainConfig(**{"objective": "simplex", "predicts_next_token": True, "eos_pad_weight": 0.25, **changes})
    return SimplexObjective(Setting(config, OPS, 0, 2))


def clean_batch(starts=(0, 5, 9), width=20, draw=3) -> CleanBatch:
    ids = torch.randint(6, 200, (len(starts), width), generator=torch.Generator().manual_seed(1))
    ids[:, width - 4 :] = 2
    start = torch.tensor(starts)
    return CleanBatch(ids, start, torch.full_like(start, width - 4), torch.arange(len(starts)) + 77, torch.tensor(draw), 0)


@pytest.mark.parametrize("is_conditioned", [False, True])
def test_the_loss_is_the_plain_formula_of_whole_tensors(model, is_conditioned):
    objective, clean = objective_of(), clean_batch()
    batch = dataclasses.replace(objective.draw(clean), is_conditioned=is_conditioned)
    loss, _ = objective.loss(model, batch)
    B, T, V, k = 3, 20, 320, 5.0
    head, transformer = model.head, model.transformer
    is_noised = (torch.arange(T)[None] >= clean.answer_start[:, None]) & (torch.arange(T) > 0)
    places = torch.arange(T).repeat(B)
    noise = normal(clean.seeds.repeat_interleave(T), places, clean.draw, CORRUPT_SIMPLEX, V).view(B, T, V)
    corner = torch.full((B, T, V), -k).scatter_(2, clean.ids[..., None], k)

    def logits(level, previous):
        share = torch.as_tensor(signal_share(level.numpy() / 5000), dtype=torch.float32)[:, None, None]
        simplex = share.sqrt() * corner + (1 - share).sqrt() * k * noise
        mean = (simplex.softmax(2) + previous.softmax(2)) / 2 @ transformer.embed
        mean = mean + (level / 5000)[:, None, None] * transformer.time_embed
        x = torch.where(is_noised[..., None], mean, transformer.embed[clean.ids])
        rows = head.logits(transformer(clean.ids, embedded=x).flatten(0, 1)).view(B, T, V)
        return torch.cat([torch.zeros(B, 1, V), rows[:, :-1]], 1)

    with torch.no_grad():
        previous = torch.zeros(B, T, V)
        if is_conditioned:
            previous = logits((batch.level + 1).clamp(max=4999), previous)
        found = torch.nn.functional.cross_entropy(logits(batch.level, previous).flatten(0, 1), clean.ids.flatten(), reduction="none")
    weight = torch.where(torch.arange(T)[None] > clean.first_eos[:, None], 0.25, 1.0) * is_noised
    assert float(loss) == pytest.approx(float((found.view(B, T) * weight).sum()), rel=1e-5)
    assert float(batch.divisor) == pytest.approx(float(weight.sum()))


def test_the_time_vector_learns_and_the_first_guess_does_not(model):
    objective = objective_of()
    batch = dataclasses.replace(objective.draw(clean_batch()), is_conditioned=True)
    loss, _ = objective.loss(model, batch)
    gradient = torch.autograd.grad(loss, model.transformer.time_embed)[0]
    assert float(gradient.abs().max()) > 0


def test_levels_are_uniform_and_half_of_the_batches_are_conditioned():
    objective = objective_of()
    drawn = [objective.draw(clean_batch(draw=number)) for number in range(400)]
    levels = torch.cat([one.level for one in drawn]).double() / 5000
    # 1200 uniform levels: a mean 4.9 standard errors off is one alarm in a million; so are 49 coins off of 400.
    assert abs(float(levels.mean()) - 0.5) < 4.9 * (1 / 12 / 1200) ** 0.5
    assert levels.min() >= 0 and levels.max() < 1
    assert abs(sum(one.is_conditioned for one in drawn) - 200) < 49
    again = objective.draw(clean_batch(draw=7))
    assert torch.equal(again.level, drawn[7].level) and again.is_conditioned == drawn[7].is_conditioned


def test_spans_take_their_share_begin_behind_a_kept_one_and_have_their_mean():
    generator = np.random.Generator(np.random.Philox(key=3))
    for share, mean in ((0.15, 3), (0.15, 8), (0.5, 48)):
        for length in (2, 7, 500):
            mask = random_spans(length, share, mean, generator)
            assert len(mask) == length and not mask[0] and mask.sum() == min(max(round(length * share), 1), length - 1)
        count = int((np.diff(mask.astype(int)) == 1).sum())
        assert count == max(round(500 * share / mean), 1)
    assert {prefix_length(9, generator) for _ in range(200)} == {2, 3, 4, 5}


def test_ul2_draws_all_of_its_denoisers_and_leaves_pads_beside_spans():
    lengths = np.array([40, 12])
    kinds = set()
    for key in range(60):
        mask = draw_spans(lengths, 40, np.random.Generator(np.random.Philox(key=key)))
        assert not mask[:, 0].any() and mask.any(1).all()
        runs = int((np.diff(mask[0].astype(int)) == 1).sum())
        kinds.add("prefix" if mask[1, 12:].all() else f"{runs} spans")
    assert "prefix" in kinds and len(kinds) >= 4
    batch = objective_of(spans="ul2").draw(clean_batch(draw=5))
    assert torch.equal(batch.position, objective_of(spans="ul2").draw(clean_batch(draw=5)).position)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    make_tiny(folder / "base")
    write_examples(folder / "data.jsonl")
    flags = ["--base", folder / "base", "--data", folder / "data.jsonl", "--output", folder / "run", "--objective", "simplex"]
    flags += ["--predicts-next-token", "--max-length", 72, "--rank", 8, "--targets", "q_proj", "v_proj", "up_proj", "down_proj"]
    flags += ["--steps", 60, "--batch-size", 4, "--warmup-steps", 2, "--learning-rate", 0.01, "--val-share", 0.2, "--val-examples", 4]
    flags += ["--log-every", 1, "--val-every", 60, "--device", "cpu", "--no-plot", "--quiet", "--tail-power", 0]
    assert main([str(part) for part in flags]) == 0
    return folder


def test_the_loss_falls_and_the_adapter_decodes_as_simplex(trained):
    lines = [json.loads(line) for line in (trained / "run" / "metrics.jsonl").read_text().splitlines()]
    seen = [line["loss"] for line in lines if "loss" in line]
    assert sum(seen[-10:]) < 0.6 * sum(seen[:10])
    checked = [line for line in lines if "val_loss" in line]
    for key in ("val_loss", "val_loss_noise_20", "val_loss_noise_80"):
        assert checked[-1][key] < 0.8 * checked[0][key]
    engine = Engine.load(trained / "base", adapter=trained / "run" / "adapter.safetensors")
    assert engine.family == "simplex" and engine.sampling().profile == "tess2"
    assert float(engine.model.transformer.time_embed.abs().max()) > 0
    (result,) = engine.generate("user 3", engine.sampling(steps=5, max_new_tokens=6))
    assert result.nfe == 5 and len(result.token_ids) == 6
