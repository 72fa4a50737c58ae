"""The teacher is the base alone, read from left to right; the loss goes towards its distribution and its layers' inputs."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_families import make_family

from lad_engine.adapters.reader import read_adapter
from lad_engine.errors import ConfigError
from lad_engine.model.backbones import backbone_of
from lad_engine.model.language_model import LanguageModel
from lad_engine.model.weights import open_checkpoint
from lad_engine.ops import select_ops
from lad_engine.train import main
from lad_engine.training.config import TrainConfig
from lad_engine.training.gradients import differentiable
from lad_engine.training.lora import attach_trainable
from lad_engine.training.objectives.lad import LadObjective
from lad_engine.training.objectives.objective import CleanBatch, Setting
from lad_engine.training.teacher import Teacher, distance
from tiny_checkpoint import make_tiny

OPS = differentiable(select_ops("reference"))


def loaded(folder):
    checkpoint = open_checkpoint(folder)
    return LanguageModel(backbone_of(checkpoint.facts).from_tensors(checkpoint.facts, checkpoint.tensors(), OPS))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("teacher")
    return {"llama": make_tiny(root / "llama"), "gpt2": make_family(root / "gpt2", "diffugpt")}


def adapted(folder):
    """Return the model with pairs that change it, the head's included."""
    model = loaded(folder)
    last = {path.rpartition(".")[2] for path in model.transformer.linear_names()}
    pairs = attach_trainable(model.transformer, sorted(last), 4, 8.0, uses_rslora=False, dropout=0.0, train_norms=False, seed=1).pairs
    for _, b in pairs.values():
        torch.nn.init.normal_(b, std=0.2)
    return model


def clean_batch():
    ids = torch.randint(6, 200, (3, 20), generator=torch.Generator().manual_seed(2))
    first_eos = torch.tensor([12, 17, 9])
    for row, end in zip(ids, first_eos, strict=True):
        row[end:] = 2
    return CleanBatch(ids, torch.tensor([3, 6, 0]), first_eos, torch.tensor([71, 72, 73]), torch.tensor(4), 0)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_it_reads_as_the_base_alone_does_from_left_to_right(folders, name):
    plain, model, clean = loaded(folders[name]), adapted(folders[name]), clean_batch()
    teacher = Teacher(model)
    read = teacher.read(clean.ids)
    past = torch.ones(20, 20, dtype=torch.bool).tril()
    with Teacher(plain).listening() as heard:
        hidden = plain.hidden(clean.ids, mask=past)
    assert torch.equal(read.hidden, hidden) and len(read.normed) == 1 + len(heard) == 1 + len(model.transformer.layers)
    for got, want in zip(read.normed, (*heard, plain.head.normed(hidden)), strict=True):
        assert torch.equal(got, want)
    # What stands behind a position does not reach its row.
    other = clean.ids.clone()
    other[:, 9:] = 17
    torch.testing.assert_close(teacher.read(other).hidden[:, :9], hidden[:, :9], rtol=1e-4, atol=1e-5)
    assert torch.equal(teacher.expected(hidden[0]), plain.head.logits(hidden[0]))
    # The adapter is back in place, and does something.
    assert (model.hidden(clean.ids) - plain.hidden(clean.ids)).abs().max() > 1e-2
    assert (model.head.logits(hidden[0]) - plain.head.logits(hidden[0])).abs().max() > 1e-3


@pytest.mark.parametrize("shift", [True, False])
def test_the_distance_is_taken_on_the_prompt_and_before_masks_that_nothing_follows(folders, shift):
    plain, model, clean = loaded(folders["llama"]), adapted(folders["llama"]), clean_batch()
    model.head.predicts_next_token = shift
    changes = {"loss": "answer", "predicts_next_token": shift, "corruption": "mask_only", "block_share": 0.5, "block_length": 4}
    drawn, losses = [], []
    for weight in (0.0, 3.0):
        objective = LadObjective(Setting(TrainConfig(**changes, align_weight=weight), OPS, 5, 2))
        drawn.append(objective.draw(clean))
        losses.append(objective.loss(model, drawn[-1]))
    batch, far = drawn[1], float(losses[1][1]["distance"])
    assert float((losses[1][0] - losses[0][0]).detach()) == pytest.approx(3.0 * far * float(batch.divisor), rel=1e-3)
    with Teacher(model).listening() as heard:
        hidden = model.hidden(batch.ids)
    mine = (*heard, model.head.normed(hidden))
    with Teacher(plain).listening() as heard:
        hidden = plain.hidden(clean.ids, mask=torch.ones(20, 20, dtype=torch.bool).tril())
    bases = (*heard, plain.head.normed(hidden))
    found, rows = [0.0, 0.0], [0, 0]
    for b in range(3):
        same = (batch.ids[b] == clean.ids[b]).tolist()
        first = same.index(False)
        stop = int(clean.answer_start[b]) - shift if (batch.ids[b, first:] != 5).any() else first
        for j in range(min(stop, int(clean.first_eos[b]))):
            # The row that predicts the first answer token counts with the answers.
            part = j >= int(clean.answer_start[b]) - shift
            rows[part] += 1
            found[part] += sum(
                float((m[b, j] - t[b, j]).detach().square().sum() / t[b, j].square().sum()) for m, t in zip(mine, bases, strict=True)
            )
    assert min(rows) > 2 and far == pytest.approx(sum(a / n for a, n in zip(found, rows, strict=True)) / 2 / len(mine), rel=1e-4)


def test_no_clean_text_before_the_damage_is_no_distance(folders):
    model, clean = adapted(folders["llama"]), clean_batch()
    read = Teacher(model).read(clean.ids)
    assert distance(read, read, torch.zeros(3, 20, dtype=torch.bool)) == 0
    assert distance(read, read, torch.ones(3, 20, dtype=torch.bool)) == 0


@pytest.mark.parametrize("shift", [True, False])
def test_the_loss_is_towards_what_the_base_expects_where_only_masks_follow(folders, shift):
    plain, model, clean = loaded(folders["llama"]), adapted(folders["llama"]), clean_batch()
    config = TrainConfig(
        loss="answer",
        teacher_share=0.75,
        predicts_next_token=shift,
        eos_pad_weight=0.5,
        corruption="mask_only",
        block_share=0.7,
        block_length=6,
    )
    model.head.predicts_next_token = shift
    objective = LadObjective(Setting(config, OPS, 5, 2))
    batch = objective.draw(clean)
    taught = 0
    loss, _ = objective.loss(model, batch)
    hidden = model.hidden(batch.ids)
    want = 0.0
    for b, j, weight in zip(batch.row.tolist(), batch.position.tolist(), batch.weight.tolist(), strict=True):
        said = model.head.logits(hidden[b, j - 1 if shift else j][None])[0].log_softmax(0)
        target = torch.zeros_like(said)
        target[clean.ids[b, j]] = 1.0
        if 0 < j < int(clean.first_eos[b]) and (batch.ids[b, j:] == 5).all():
            taught += 1
            past = plain.hidden(clean.ids[b : b + 1, :j], mask=torch.ones(j, j, dtype=torch.bool).tril())[0, -1:]
            target = 0.25 * target + 0.75 * plain.head.logits(past)[0].softmax(0)
        want = want - weight * float((target * said).sum().detach())
    assert 0 < taught < len(batch.row)
    assert float(loss.detach()) == pytest.approx(want, rel=1e-5)


def test_an_adapter_of_the_head_is_trained_beside_it(folders, tmp_path):
    (tmp_path / "data.jsonl").write_text("".join(json.dumps({"instruction": f"user {n}", "output": "the user"}) + "\n" for n in range(12)))
    flags = ["--base", folders["llama"], "--data", tmp_path / "data.jsonl", "--output", tmp_path / "run", "--max-length", 72, "--rank", 4]
    flags += ["--targets", "lm_head", "q_proj", "--teacher-share", 0.5, "--steps", 3, "--batch-size", 4, "--device", "cpu", "--quiet"]
    assert main([str(part) for part in (*flags, "--no-plot")]) == 0
    assert read_adapter(tmp_path / "run" / "adapter.safetensors").weights["lm_head"].b.abs().max() > 0


def test_a_run_listens_to_it_and_other_objectives_refuse_it(folders, tmp_path, capsys):
    rows = [{"instruction": f"{word} {number}", "output": f"the {word}"} for word in ("user", "in", "an") for number in range(6)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--base", folders["llama"], "--data", tmp_path / "data.jsonl", "--max-length", 72, "--rank", 4, "--steps", 4]
    flags += ["--batch-size", 4, "--val-share", 0.2, "--log-every", 1, "--device", "cpu", "--no-plot", "--quiet"]

    def losses(name, *more):
        assert main([str(part) for part in (*flags, "--output", tmp_path / name, *more)]) == 0
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        return [line["loss"] for line in lines if "loss" in line]

    both = ("--teacher-share", 0.5, "--align-weight", 2, "--loss", "answer")
    taught = losses("taught", *both)
    assert taught != losses("plain", "--loss", "answer") and taught == losses("again", *both)
    # Layers that are computed again for the backward pass give the same gradients.
    assert taught == pytest.approx(losses("recomputed", *both, "--grad-checkpointing"), rel=1e-5)
    assert '"distance": ' in (tmp_path / "taught" / "metrics.jsonl").read_text()
    assert main(["--align-weight", "0.5", "--train-norms", "--data", str(tmp_path / "data.jsonl")]) == 2
    assert "align_weight is set with train_norms" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"teacher_share is 0\.5, which objective simplex does not read"):
        TrainConfig(objective="simplex", teacher_share=0.5)
    with pytest.raises(ConfigError, match=r"align_weight is -1, expected 0 or more"):
        TrainConfig(align_weight=-1)
    with pytest.raises(ConfigError, match=r"teacher_share is 1\.5, expected a number from 0 to 1"):
        TrainConfig(teacher_share=1.5)
