"""Whole runs of the command on a tiny checkpoint: the loss falls, a resumed run is the same run, the adapter is what PEFT reads too."""

from __future__ import annotations

import json
import os
import signal

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from lad_engine import train
from lad_engine.adapters.reader import read_adapter
from lad_engine.ops import select_ops
from lad_engine.train import main
from lad_engine.training.checkpoint import list_checkpoints
from lad_engine.training.trainer import Trainer


def run(place, name, *flags):
    settings = ["--base", place / "base", "--data", place / "data.jsonl", "--output", place / name, "--max-length", 72, "--rank", 8]
    settings += ["--steps", 6, "--batch-size", 4, "--warmup-steps", 2, "--val-share", 0.1, "--val-examples", 4, "--corruption", "mixed"]
    settings += ["--log-every", 1, "--device", "cpu", "--no-plot", "--quiet"]
    return main([str(part) for part in (*settings, *flags)])


def metrics(place, name):
    return [json.loads(line) for line in (place / name / "metrics.jsonl").read_text().splitlines()]


def losses(place, name):
    return [(line["step"], line["loss"]) for line in metrics(place, name) if "loss" in line]


def test_the_loss_falls_on_a_toy_set(place):
    flags = ["--predicts-next-token", "--targets", "q_proj", "v_proj", "up_proj", "down_proj", "--steps", 60, "--learning-rate", 0.01]
    assert run(place, "falls", *flags, "--label-smoothing", 0.05, "--kept-weight", 0.2, "--grad-accumulation", 2) == 0
    seen = [loss for _, loss in losses(place, "falls")]
    assert sum(seen[-10:]) < 0.5 * sum(seen[:10])
    checked = [line for line in metrics(place, "falls") if "val_loss" in line]
    assert checked[-1]["val_loss_masked_60"] < 0.6 * checked[0]["val_loss_masked_60"]
    assert {line["step"] for line in checked} == {0, 60}


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(place, monkeypatch):
    flags = ["--dropout", 0.1, "--save-every", 3, "--grad-accumulation", 2, "--loss", "answer", "--train-norms"]
    assert run(place, "whole", *flags) == 0
    update = Trainer.update

    def interrupted(self):
        values = update(self)
        if self.counters.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return values

    monkeypatch.setattr(Trainer, "update", interrupted)
    assert run(place, "parts", *flags) == 0
    assert [step for step, _ in losses(place, "parts")] == [1, 2, 3, 4]
    torch.manual_seed(99)
    monkeypatch.setattr(Trainer, "update", update)
    assert main(["--resume", "--output", str(place / "parts"), "--quiet"]) == 0
    assert losses(place, "parts") == losses(place, "whole")
    for file in ("trainable.safetensors", "optimizer.safetensors"):
        whole, parts = (load_file(place / name / "checkpoints" / "step-00000006" / file) for name in ("whole", "parts"))
        assert whole.keys() == parts.keys()
        assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_a_run_killed_between_its_last_checkpoint_and_its_adapter_has_the_last_adapter_when_resumed(place, monkeypatch):
    save = Trainer.save

    def killed(self):
        if self.counters.step == 6:
            monkeypatch.setattr(self, "export", lambda step: os.kill(os.getpid(), signal.SIGTERM))
        save(self)

    monkeypatch.setattr(Trainer, "save", killed)
    assert run(place, "cut", "--save-every", 3) == 0
    monkeypatch.setattr(Trainer, "save", save)
    assert read_adapter(place / "cut" / "adapter.safetensors").facts.extra["updates"] == 3
    assert main(["--resume", "--output", str(place / "cut"), "--quiet"]) == 0
    assert read_adapter(place / "cut" / "adapter.safetensors").facts.extra["updates"] == 6


def test_the_compiled_noise_is_used_and_makes_the_run_that_the_reference_makes(place, monkeypatch):
    assert select_ops(train.OPS).chosen["structured_noise"] == select_ops("auto").chosen["structured_noise"]
    assert run(place, "compiled") == 0
    monkeypatch.setattr(train, "OPS", "reference")
    assert run(place, "plain") == 0
    assert losses(place, "compiled") == losses(place, "plain")
    made, plain = (load_file(place / name / "checkpoints" / "step-00000006" / "trainable.safetensors") for name in ("compiled", "plain"))
    assert all(torch.equal(made[key], plain[key]) for key in plain)


def test_the_adapter_gives_peft_the_logits_it_gives_us(place):
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    from lad_engine.adapters.attach import attach
    from lad_engine.model.transformer import Transformer
    from lad_engine.model.weights import open_checkpoint
    from lad_engine.ops import select_ops

    flags = ["--targets", "q_proj", "o_proj", "gate_proj", "--alpha", 4, "--rslora", "--learning-rate", 0.05, "--system-prompt", ""]
    assert run(place, "peft", *flags) == 0
    single, folder = (read_adapter(place / "peft" / name) for name in ("adapter.safetensors", "peft"))
    assert set(single.facts.targets) == set(folder.facts.targets)
    for field in ("rank", "alpha", "mask_token", "mask_id", "predicts_next_token", "uses_rslora", "system_prompt", "corruption"):
        assert getattr(single.facts, field) == getattr(folder.facts, field), field
    assert single.facts.mask_token == "MASK" and single.facts.system_prompt == "" and single.facts.base_fingerprint
    assert single.facts.extra["updates"] == 6
    checkpoint = open_checkpoint(place / "base")
    ours = Transformer.from_tensors(checkpoint.facts, checkpoint.tensors(), select_ops("reference"))
    ids = torch.randint(5, 300, (2, 12))
    with torch.no_grad():
        plain = ours.head.logits(ours(ids, is_causal=True)[0])
        attach(ours, folder)
        got = ours.head.logits(ours(ids, is_causal=True)[0])
        base = transformers.AutoModelForCausalLM.from_pretrained(place / "base", dtype=torch.float32)
        want = peft.PeftModel.from_pretrained(base, place / "peft" / "peft")(ids).logits[0]
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert (got - plain).abs().max() > 0.01


def test_a_run_continues_from_an_adapter(place):
    assert run(place, "first", "--learning-rate", 0.02) == 0
    assert run(place, "second", "--init-adapter", place / "first" / "peft", "--steps", 1, "--learning-rate", 1e-9) == 0
    first, second = (read_adapter(place / name / "peft") for name in ("first", "second"))
    for path, pair in first.weights.items():
        torch.testing.assert_close(second.weights[path].b, pair.b, rtol=0, atol=1e-6)
    assert run(place, "third", "--init-adapter", place / "first" / "peft", "--rank", 4) == 2


def test_mask_only_and_gradient_checkpointing_run_and_the_plot_is_drawn(place):
    pytest.importorskip("matplotlib")
    flags = ["--corruption", "mask_only", "--loss", "mask_only", "--grad-checkpointing", "--plot", "--steps", 2]
    assert run(place, "plotted", *flags) == 0
    assert (place / "plotted" / "loss.png").stat().st_size > 1000
    assert run(place, "unsaved", *[flag for flag in flags if flag != "--grad-checkpointing"]) == 0
    assert dict(losses(place, "plotted")) == pytest.approx(dict(losses(place, "unsaved")), abs=1e-5)


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--data", "absent.jsonl"], "data: absent.jsonl does not exist"),
        (["--mask-token", "HOLE"], "'HOLE' is 2 tokens"),
        (["--targets", "w_proj"], "target w_proj names no linear layer"),
        (["--steps", "0"], "steps is 0, expected 1 or more"),
        (["--loss", "mask_only"], 'expected corruption "mask_only"'),
        (["--corruption", "salt"], "corruption is 'salt', expected one of paper"),
        (["--learning-rate", "fast"], "--learning-rate"),
        (["--lerning-rate", "1"], "--lerning-rate"),
        (["--threads", "-1"], "threads is -1, expected 1 or more"),
        (["--threads", "9999"], "threads is 9999, expected at most 1024"),
        (["--seed", str(2**63)], "seed is 9223372036854775808, expected at most"),
        (["--alpha", "0"], "alpha is 0.0, expected a number above 0"),
        (["--alpha", "nan"], "alpha is nan, expected a number above 0"),
        (["--data", "x" * 300], "File name too long"),
        (["--max-length", "9"], "nothing is left to train on"),
        (["--max-length", "513"], "max_length is 513, expected at most 512 (max_position_embeddings of the base)"),
        (["--data", "."], "data: . is no file"),
        (["--profile", "tess2"], "profile tess2 sets transition, which decoding after objective lad does not read"),
        (["--kept-weight", "0.5", "--loss", "answer"], 'kept_weight is 0.5, which loss "answer" does not read'),
        (["--eos-pad-weight", "0.5", "--loss", "all"], 'eos_pad_weight is 0.5, which loss "all" does not read'),
        (["--spans", "ul2"], "spans is 'ul2', which objective lad does not read"),
        (["--rank", "1000000000000"], "memory: the device has too little for this run"),
        (["--base", "absent"], "absent"),
        (["--config", "absent.toml"], "absent.toml cannot be read"),
        (["--device", "abacus"], "device is 'abacus'"),
        (["--init-adapter", "absent"], "absent"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_a_mistake_is_one_sentence_and_leaves_nothing(place, capsys, flags, said):
    assert run(place, "wrong", *flags) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and error.count("\n") == 1
    assert not (place / "wrong").exists()


def test_a_run_is_never_overwritten_and_a_missing_one_never_resumed(place, capsys):
    assert run(place, "kept", "--steps", 1) == 0
    assert run(place, "kept", "--steps", 1) == 2
    assert "Continue it with --resume" in capsys.readouterr().err
    assert main(["--resume", "--output", str(place / "nothing")]) == 2
    assert "holds no run" in capsys.readouterr().err
    state = place / "kept" / "checkpoints" / "step-00000001" / "state.json"
    state.write_text("{")
    assert main(["--resume", "--output", str(place / "kept"), "--quiet"]) == 2
    assert "unreadable" in capsys.readouterr().err
    (place / "kept" / "config.json").write_text("[]")
    assert main(["--resume", "--output", str(place / "kept"), "--quiet"]) == 2
    assert "is a JSON list, expected the settings of a run" in capsys.readouterr().err


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("I/O error: No space left on device")])
def test_a_full_disk_ends_a_run_in_one_sentence(place, capsys, monkeypatch, error):
    def full(*_):
        raise error

    monkeypatch.setattr("lad_engine.training.checkpoint.save_file", full)
    assert run(place, "full", "--steps", 1) == 2
    said = capsys.readouterr().err
    assert "step-00000001 cannot be written" in said and "No space left on device" in said and said.count("\n") == 1
    assert not list_checkpoints(place / "full")


def test_settings_come_from_a_file_and_flags_win(place, capsys):
    file = place / "run.toml"
    named = f'base = "{place / "base"}"\ndata = ["{place / "data.jsonl"}=2"]\n'
    file.write_text(named + "steps = 9\nrank = 2\nmax_length = 72\nbatch_size = 4\n")
    flags = ["--config", str(file), "--steps", "1", "--output", str(place / "filed"), "--quiet", "--no-plot"]
    assert main(flags) == 0
    stored = json.loads((place / "filed" / "config.json").read_text())
    assert (stored["steps"], stored["rank"], stored["data"]) == (1, 2, [f"{place / 'data.jsonl'}=2"])
    file.write_text("stepz = 9\n")
    assert main(flags) == 2
    assert "stepz is not a training setting; did you mean steps?" in capsys.readouterr().err
    file.write_text('steps = "nine"\n')
    assert main(flags[:2]) == 2
    assert "steps is 'nine', expected an integer" in capsys.readouterr().err


def test_two_processes_draw_what_one_draws_with_twice_the_accumulation():
    from lad_engine.ops import select_ops
    from lad_engine.training.batches import BatchOrder
    from lad_engine.training.config import TrainConfig
    from lad_engine.training.data import Examples
    from lad_engine.training.objectives.lad import LadObjective
    from lad_engine.training.objectives.objective import Setting
    from lad_engine.training.processes import Processes
    from lad_engine.training.trainer import Counters

    examples = Examples([torch.arange(3, 8).numpy()] * 24, [torch.full((n,), 9).numpy() for n in range(1, 25)], range(24), [1.0] * 24)

    def drawer(processes):
        trainer = Trainer.__new__(Trainer)
        trainer.config, trainer.ops, trainer.processes = TrainConfig(max_length=48, corruption="mixed"), select_ops("reference"), processes
        trainer.examples, trainer.order, trainer.counters = examples, BatchOrder(examples, 4, 0), Counters()
        trainer.mask_id, trainer.eos_id, trainer.device = 2, 1, torch.device("cpu")
        trainer.objective = LadObjective(Setting(trainer.config, trainer.ops, trainer.mask_id, trainer.eos_id))
        return trainer

    alone, first, second = drawer(Processes()), drawer(Processes(0, 2)), drawer(Processes(1, 2))
    for _ in range(4):
        for part in (first, second):
            want, got = alone.draw(), part.draw()
            assert torch.equal(got.ids, want.ids) and torch.equal(got.weight, want.weight)
