"""The training bench runs on a tiny model, and the authors' recipe starts where our trainer does: the same loss on the same canvases."""

from __future__ import annotations

import json
import sys

import bench_on_path  # noqa: F401 - its import is its effect
import pytest
import torch

import bench.train
from bench.report import TABLES
from bench.results import check_result
from bench.train import BATCH, EOS_ID, OURS, SAME, THEIRS, WINDOW, Authors, Ours, examples_of, lengths_of_data
from lad_engine.training.batches import BatchOrder, window_length
from lad_engine.training.objectives.lad import WeighedLoss, weigh
from lad_engine.training.objectives.objective import CleanBatch

ON_CPU = pytest.mark.skipif(torch.cuda.is_available(), reason="sizes for a CPU")


def quick(monkeypatch, out):
    monkeypatch.setattr(sys, "argv", ["bench.train", "--quick", "--out", str(out)])
    bench.train.main()
    result = json.loads(out.read_text())
    check_result(result)
    return result


@ON_CPU
def test_both_sides_train_on_the_same_text_and_the_table_judges_ours(monkeypatch, tmp_path):
    pytest.importorskip("peft")
    result = quick(monkeypatch, tmp_path / "train.json")
    (row,) = result["rows"]
    assert set(row["times"]) == {OURS, SAME, THEIRS} and row["refused"] == {}
    assert row["positions"][SAME] == row["positions"][THEIRS] == BATCH * WINDOW > row["positions"][OURS] >= row["text_tokens"]
    assert row["ratios"][OURS] == pytest.approx(row["text_tokens_per_s"][OURS] / row["text_tokens_per_s"][THEIRS])
    row["ratios"][OURS] = 1.7
    assert "| 1.70 x (met: ≥ 1.5 x) |" in TABLES["train"](result)


@ON_CPU
def test_without_peft_its_side_is_left_out_with_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "peft", None)
    (row,) = quick(monkeypatch, tmp_path / "train.json")["rows"]
    assert set(row["times"]) == {OURS, SAME} and row["ratios"] == {} and "peft" in row["refused"][THEIRS]
    assert capsys.readouterr().out.count("left out, peft is not installed") == 1


@ON_CPU
def test_the_recipe_computes_the_loss_our_trainer_does(monkeypatch):
    pytest.importorskip("peft")
    examples = examples_of(512, 2 * BATCH, lengths_of_data())
    ours = Ours("tiny", torch.float32, "cpu", examples)
    authors = Authors(ours, torch.float32, "cpu", examples)
    trainer = ours.trainers[SAME]
    noised, clean = authors.batches[1]
    none = torch.zeros(len(clean), dtype=torch.int64)
    whole = CleanBatch(clean, none, none, none, none[0], 0)
    batch = weigh(whole, noised, torch.ones_like(clean, dtype=torch.float32), None)
    mine = WeighedLoss(trainer.objective._setting)(trainer.model, batch)[0] / batch.divisor
    theirs = authors.training.loss(noised, clean)
    assert float(mine) == pytest.approx(float(theirs), rel=1e-5)
    # The pairs start at zero, so it is the base's loss; their gradients reach the same parameters.
    mine.backward()
    theirs.backward()
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.default.weight"
    found = dict(authors.training.model.named_parameters())[name].grad
    assert found.shape == trainer.trainable.pairs["model.layers.0.self_attn.q_proj"][1].grad.shape and float(found.abs().max()) > 0


def test_an_epoch_holds_every_example_once_and_fills_the_window_only_for_them():
    examples = examples_of(512, 2 * BATCH, lengths_of_data())
    assert int(examples.total.max()) <= WINDOW and EOS_ID < 8
    ours = Ours("tiny", torch.float32, "cpu", examples)
    short = ours.epoch(OURS, 2)
    assert int(examples.total.sum()) <= short < 2 * BATCH * WINDOW
    assert sorted(index for part in ours.trainers[OURS].order.batches(0) for index in part) == list(range(2 * BATCH))


def test_examples_of_one_batch_are_so_alike_in_length_that_packing_them_would_save_little():
    # Several short examples in one row would need attention over blocks; like lengths in one batch need nothing and waste under 5 %.
    lengths = lengths_of_data()
    examples = examples_of(1000, len(lengths), lengths)
    computed = used = 0
    for indices in BatchOrder(examples, BATCH, seed=0).batches(0):
        computed += len(indices) * window_length(int(examples.total[indices].max()), WINDOW, 2, 0.0, 0.5)
        used += int(examples.total[indices].sum()) + 2 * len(indices)
    assert 0.95 < used / computed <= 1.0
