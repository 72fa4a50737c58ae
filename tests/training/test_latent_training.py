"""Training of L2D's flow path: loss falls, the base stays as it was, and the folder it leaves behind decodes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lad_engine.engine import Engine
from lad_engine.errors import ConfigError
from lad_engine.model.language_model import LanguageModel
from lad_engine.model.latent_facts import latent_shapes
from lad_engine.model.weights import open_checkpoint
from lad_engine.ops import select_ops
from lad_engine.train import main
from lad_engine.training.config import TrainConfig
from lad_engine.training.gradients import differentiable
from lad_engine.training.latent import open_flow_path
from lad_engine.training.objectives.latent_ode import LatentObjective, flow_rows
from lad_engine.training.objectives.objective import CleanBatch, Setting
from tiny_checkpoint import make_tiny

OPS = differentiable(select_ops("reference"))


def opened(folder, **settings):
    config = TrainConfig(objective="latent_ode", rank=4, **settings)
    checkpoint = open_checkpoint(make_tiny(folder))
    transformer, trainable = open_flow_path(checkpoint, config, OPS, torch.float32, torch.device("cpu"))
    return transformer, trainable, LatentObjective(Setting(config, OPS, 0, 2)), checkpoint


def clean(draw: int = 0, labels=None) -> CleanBatch:
    ids = torch.randint(8, 250, (3, 20), generator=torch.Generator().manual_seed(4))
    return CleanBatch(ids, torch.tensor([5, 9, 1]), torch.tensor([15, 19, 12]), torch.arange(3), torch.tensor(draw), 0, labels)


def test_a_fresh_flow_path_changes_nothing_and_only_it_is_trained(tmp_path):
    transformer, trainable, objective, _ = opened(tmp_path)
    with torch.no_grad():
        rows = flow_rows(transformer, OPS, objective.draw(clean()))
        plain = transformer(clean().ids[:, :-1], is_causal=True)
    assert torch.allclose(rows, plain, atol=1e-5)
    wanted = {name for name, parameter in transformer.named_parameters() if parameter.requires_grad}
    assert wanted == {f"flow.{name}" for name in trainable.named()}
    assert sum(p.numel() for p in trainable.named().values()) == sum(int(np.prod(s)) for s in latent_shapes(transformer.facts).values())


def test_tokens_that_count_are_the_answers_up_to_their_closing_eos(tmp_path):
    batch = opened(tmp_path)[2].draw(clean())
    assert float(batch.divisor) == 11 + 11 + 12
    assert torch.equal(batch.target, clean().ids[batch.row, batch.position])
    assert int(batch.position[batch.row == 2].min()) == 1


def test_times_are_drawn_per_token_and_anew_by_draw_and_cosmap_bends_them(tmp_path):
    objective = opened(tmp_path)[2]
    first, second = objective.draw(clean(0)).times, objective.draw(clean(1)).times
    assert first.shape == (3, 19) and len(first.unique()) == 57 and not torch.equal(first, second)
    bent = LatentObjective(Setting(TrainConfig(objective="latent_ode", flow_times="cosmap"), OPS, 0, 2)).draw(clean(0)).times
    assert torch.allclose(bent, 1 - 1 / (torch.tan(torch.pi * first / 2) + 1), atol=1e-6)


def test_classes_are_dropped_per_token_at_their_rate(tmp_path):
    objective = opened(tmp_path, flow_classes=2, data=("a.jsonl", "b.jsonl"), class_dropout=0.25)[2]
    labels = torch.tensor([0, 1, 1])
    drawn = torch.stack([objective.draw(clean(draw, labels)).classes for draw in range(200)])
    is_null = drawn == 2
    # 11400 draws: three standard deviations are 0.012.
    assert abs(float(is_null.float().mean()) - 0.25) < 0.012
    assert torch.equal(torch.where(is_null, 0, drawn).amax((0, 2)), labels)


def test_the_loss_falls_and_the_base_is_untouched(tmp_path):
    transformer, trainable, objective, _ = opened(tmp_path)
    before = {name: slot.clone() for name, slot in transformer.slots().items() if name not in transformer.flow.slots()}
    optimizer, model, losses = torch.optim.AdamW(trainable.named().values(), lr=3e-3), LanguageModel(transformer), []
    for step in range(25):
        batch = objective.draw(clean(step))
        loss = objective.loss(model, batch)[0] / batch.divisor
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    for name, slot in before.items():
        assert torch.equal(transformer.slots()[name], slot), name


def test_a_run_leaves_a_folder_that_decodes_and_can_be_continued(tmp_path, capsys):
    base = make_tiny(tmp_path / "base", max_position_embeddings=256)
    data = tmp_path / "data.jsonl"
    rows = [{"instruction": f"say {word}", "output": word * 3} for word in ("an", "he", "the", "is", "us", "on", "re", "er")]
    data.write_text("\n".join(map(json.dumps, rows)))
    flags = ["--base", str(base), "--data", str(data), "--objective", "latent_ode", "--rank", "4", "--batch-size", "2"]
    # Nothing is masked, so a base whose tokenizer has no such piece is trained all the same.
    flags += ["--mask-token", "HOLE", "--max-length", "160", "--val-share", "0.3", "--no-plot", "--quiet", "--device", "cpu"]
    flags += ["--dtype", "float32"]
    assert main([*flags, "--steps", "2", "--output", str(tmp_path / "run")]) == 0, capsys.readouterr().err
    folder = tmp_path / "run" / "model"
    stored = {**load_file(folder / "base.safetensors"), **load_file(folder / "flow.safetensors")}
    assert all(torch.equal(stored[name], tensor) for name, tensor in load_file(base / "model.safetensors").items())
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {"val_loss_t0", "val_loss_t50", "val_loss_t90"} <= set(metrics[0])
    engine = Engine.load(folder)
    assert engine.family == "latent_ode" and len(engine.generate("say an", engine.sampling(max_new_tokens=3))[0].token_ids) <= 3
    flags[1] = str(folder)
    assert main([*flags, "--steps", "1", "--output", str(tmp_path / "more")]) == 0, capsys.readouterr().err


def test_settings_of_the_flow_path_belong_to_its_objective():
    for name, value in (("init_adapter", "a"), ("targets", ("o_proj",)), ("dropout", 0.1), ("predicts_next_token", True)):
        with pytest.raises(ConfigError, match=f"{name} is .*, which objective latent_ode does not read"):
            TrainConfig(objective="latent_ode", **{name: value})
    with pytest.raises(ConfigError, match="flow_classes is 3, which objective lad does not read"):
        TrainConfig(flow_classes=3)
    with pytest.raises(ConfigError, match="flow_classes is 3 for 1 data sources"):
        TrainConfig(objective="latent_ode", flow_classes=3, data=("a.jsonl",))
