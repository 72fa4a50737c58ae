"""The masked objective against its formula, its annealed attention, and a run whose adapter decodes as masked."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_data import write_examples
from tiny_families import MASK_ID, make_family

from lad_engine import Engine
from lad_engine.errors import ConfigError
from lad_engine.kernels.random.reference import CORRUPT_MASK
from lad_engine.model.backbones import backbone_of
from lad_engine.model.language_model import LanguageModel
from lad_engine.model.weights import open_checkpoint
from lad_engine.ops import select_ops
from lad_engine.train import main
from lad_engine.training.config import TrainConfig
from lad_engine.training.gradients import differentiable
from lad_engine.training.objectives.masked import MaskedObjective, annealed_mask
from lad_engine.training.objectives.objective import CleanBatch, Setting
from tiny_checkpoint import make_tiny

OPS = differentiable(select_ops("reference"))


def setting(**changes):
    config = TrainConfig(**{"objective": "masked", "predicts_next_token": True, "eos_pad_weight": 1.0, **changes})
    return Setting(config, OPS, MASK_ID, 2)


def clean_batch(starts=(0, 5, 9), width=24, update=10**6):
    ids = torch.randint(6, 200, (len(starts), width))
    start = torch.tensor(starts)
    first_eos = torch.full_like(start, width - 4)
    ids[:, width - 4 :] = 2
    return CleanBatch(ids, start, first_eos, torch.arange(len(starts)) + 77, torch.tensor(3), update)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("objective")
    out = {}
    for name, folder in (("llama", make_tiny(root / "llama")), ("gpt2", make_family(root / "gpt2", "diffugpt"))):
        checkpoint = open_checkpoint(folder)
        transformer = backbone_of(checkpoint.facts).from_tensors(checkpoint.facts, checkpoint.tensors(), OPS)
        transformer.head.predicts_next_token = True
        out[name] = LanguageModel(transformer)
    return out


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_loss_is_ce_over_t_divided_by_the_masked_tokens(models, name):
    model, objective, clean = models[name], MaskedObjective(setting()), clean_batch()
    batch = objective.draw(clean)
    loss, facts = objective.loss(model, batch)
    levels = OPS.structured_noise(
        clean.ids, clean.answer_start, torch.full((3,), 24), clean.seeds, clean.draw, MASK_ID, "mask_only"
    )[1]  # fmt: skip
    with torch.no_grad():
        hidden = model.hidden(batch.ids)
    total, count = 0.0, 0
    for b in range(3):
        for j in range(max(1, int(clean.answer_start[b])), 24):
            if batch.ids[b, j] == MASK_ID:
                p = model.head.logits(hidden[b, j - 1 : j])[0].log_softmax(0)
                total -= float(p[clean.ids[b, j]]) / float(levels[b])
                count += 1
    assert count == int(batch.divisor) == len(batch.row)
    assert abs(float(loss) - total) <= 1e-4 * total
    assert abs(float(facts["masked_share"]) - count / (3 * 24)) < 1e-6


def test_each_answer_token_is_masked_by_itself_with_its_sequences_t_and_nothing_before_it():
    objective, clean = MaskedObjective(setting()), clean_batch()
    batch = objective.draw(clean)
    assert torch.equal(batch.ids[1, :5], clean.ids[1, :5]) and torch.equal(batch.ids[2, :9], clean.ids[2, :9])
    levels = OPS.structured_noise(clean.ids, clean.answer_start, torch.full((3,), 24), clean.seeds, clean.draw, MASK_ID, "mask_only")[1]
    assert (levels >= 0.001).all() and (levels <= 1).all()
    draws = OPS.uniform(clean.seeds, torch.arange(24), clean.draw, CORRUPT_MASK)
    for b, start in enumerate((0, 5, 9)):
        hidden = (batch.ids[b, start:] == MASK_ID).tolist()
        assert hidden == (draws[b, : 24 - start] < levels[b]).tolist()
    # Position 0 may be masked, but no row predicts it.
    assert not ((batch.row == 0) & (batch.position == 0)).any()


def test_annealed_attention_is_causal_at_first_and_whole_at_the_end():
    given = setting(anneal_steps=100)
    width, draw = 64, torch.tensor(5)
    for share in (0.0, 0.01, 0.37, 1.0):
        mask = annealed_mask(width, share, given, draw)
        assert mask.tril().sum() == width * (width + 1) // 2
        above, count = float(mask.triu(1).sum()), width * (width - 1) // 2
        assert abs(above - share * count) <= 4.5 * max(count * share * (1 - share), 1e-9) ** 0.5
    assert torch.equal(annealed_mask(width, 0.5, given, draw), annealed_mask(width, 0.5, given, draw))
    assert not torch.equal(annealed_mask(width, 0.5, given, draw), annealed_mask(width, 0.5, given, draw + 1))
    # rho = min(1, (update + 1) / anneal_steps)
    objective = MaskedObjective(given)
    assert objective.draw(clean_batch(update=98)).mask is not None
    assert objective.draw(clean_batch(update=99)).mask is None
    assert MaskedObjective(setting()).draw(clean_batch(update=0)).mask is None


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_masked_forward_sees_what_the_mask_allows(models, name):
    model, ids = models[name], torch.randint(6, 200, (2, 16))
    whole = model.hidden(ids)
    assert torch.allclose(model.hidden(ids, mask=torch.ones(16, 16, dtype=torch.bool)), whole, atol=1e-4, rtol=1e-4)
    changed = ids.clone()
    changed[:, -1] = 7
    causal = torch.ones(16, 16, dtype=torch.bool).tril()
    before, after = model.hidden(ids, mask=causal), model.hidden(changed, mask=causal)
    assert torch.equal(before[:, :-1], after[:, :-1]) and not torch.equal(before[:, -1], after[:, -1])
    assert not torch.equal(model.hidden(changed)[:, :-1], whole[:, :-1])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"objective": "masked", "loss": "answer"}, "loss is 'answer', which objective masked does not read"),
        ({"objective": "masked", "corruption": "mixed"}, "corruption is 'mixed', which objective masked does not read"),
        ({"anneal_steps": 10}, "anneal_steps is 10, which objective lad does not read"),
        ({"objective": "magic"}, "objective is 'magic', expected one of lad, masked"),
    ],
)
def test_settings_of_another_objective_are_refused(changes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        TrainConfig(**changes)


@pytest.mark.parametrize("base", ["llama", "gpt2"])
def test_a_short_run_learns_and_its_adapter_decodes_as_masked(tmp_path, base):
    folder = make_tiny(tmp_path / "base") if base == "llama" else make_family(tmp_path / "base", "diffugpt")
    if base == "gpt2":
        # The data is a conversation, so the tokenizer needs a template; the mask is then the adapter's.
        tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
        del tokenizer["mask_token"]
        tokenizer["chat_template"] = json.loads((make_tiny(tmp_path / "other") / "tokenizer_config.json").read_text())["chat_template"]
        (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
        targets = ("c_attn", "c_fc")
    else:
        targets = ("q_proj", "v_proj", "up_proj", "down_proj")
    write_examples(tmp_path / "data.jsonl")
    flags = ["--base", folder, "--data", tmp_path / "data.jsonl", "--output", tmp_path / "run", "--objective", "masked", "--rank", 8]
    flags += ["--predicts-next-token", "--anneal-steps", 10, "--steps", 60, "--batch-size", 4, "--learning-rate", 0.01]
    flags += ["--max-length", 72, "--val-share", 0.1, "--val-examples", 4, "--log-every", 1, "--warmup-steps", 2, "--device", "cpu"]
    assert main([str(flag) for flag in [*flags, "--targets", *targets, "--no-plot", "--quiet"]]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    checked = [line["val_recovered_masked_30"] for line in lines if "val_recovered_masked_30" in line]
    assert checked[-1] > checked[0] + 0.2
    assert all(0 < line["masked_share"] < 1 for line in lines if "loss" in line)
    engine = Engine.load(folder, adapter=tmp_path / "run" / "adapter.safetensors", device="cpu")
    assert (engine.family, engine.adapter_facts.profile, engine.adapter_facts.decoding) == ("masked", "diffullama", "masked")
    assert len(engine.generate("user 1", engine.sampling(max_new_tokens=6, steps=3))[0].token_ids) == 6
