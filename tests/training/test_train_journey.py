"""What a run is begun on, continued with and exported as: nothing is written over, nothing goes on as another model, both forms load."""

from __future__ import annotations

import json
import os
import signal

import pytest
import torch

from lad_engine import train
from lad_engine.adapters.reader import read_adapter
from lad_engine.adapters.single_file import save_single_file
from lad_engine.adapters.write_peft import write_peft_folder
from lad_engine.engine import Engine
from lad_engine.errors import TrainingError
from lad_engine.train import main
from lad_engine.training.config import TrainConfig
from lad_engine.training.processes import Processes, join_processes
from lad_engine.training.trainer import Trainer
from tiny_checkpoint import make_tiny


def run(place, name, *flags):
    settings = ["--base", place / "base", "--data", place / "data.jsonl", "--output", place / name, "--max-length", 72, "--rank", 4]
    settings += ["--steps", 2, "--batch-size", 4, "--learning-rate", 0.05, "--device", "cpu", "--no-plot"]
    return main([str(part) for part in (*settings, *flags)])


def resume(place, name, *flags):
    return main(["--resume", "--output", str(place / name), *map(str, flags)])


def test_a_new_run_writes_over_no_model_and_no_adapter(place, capsys):
    base = make_tiny(place / "own")
    before = (base / "config.json").read_bytes()
    assert run(place, "own", "--base", base) == 2
    assert "own holds a config.json that is no run's" in capsys.readouterr().err
    assert (base / "config.json").read_bytes() == before
    assert run(place, "twice") == 0
    for checkpoint in (place / "twice" / "checkpoints").iterdir():
        checkpoint.rename(place / "twice" / f"old-{checkpoint.name}")
    kept = (place / "twice" / "adapter.safetensors").read_bytes()
    assert run(place, "twice", "--seed", 1) == 2
    assert "twice holds adapter.safetensors already" in capsys.readouterr().err
    assert (place / "twice" / "adapter.safetensors").read_bytes() == kept


def test_a_run_that_ended_before_its_first_checkpoint_may_begin_again(place, monkeypatch):
    def failing(_):
        raise TrainingError("train: stopped here.")

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", failing)
        assert run(place, "again") == 2
    assert (place / "again" / "config.json").is_file()
    assert run(place, "again") == 0


def test_a_run_stopped_before_its_first_update_goes_on(place, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_is_stopping", lambda _: True)
        assert run(place, "unmoved", "--dropout", 0.1) == 0
    assert resume(place, "unmoved") == 0
    assert read_adapter(place / "unmoved" / "adapter.safetensors").facts.extra["updates"] == 2


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--alpha", 16], "alpha is 16.0, expected 4 as before"),
        (["--rslora"], "rslora is True, expected False as before"),
        (["--mask-token", "user"], "mask_token is 'user', expected 'MASK' as before"),
        (["--predicts-next-token"], "predicts_next_token is True, expected False as before"),
        (["--base", "other"], "base has fingerprint"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_stored_values_go_on_as_the_model_they_were_trained_as(place, capsys, flags, said):
    if not (place / "meant").exists():
        make_tiny(place / "other", seed=1)
        assert run(place, "meant") == 0
    settings = (place / "meant" / "config.json").read_bytes()
    flags = [place / flag if flag == "other" else flag for flag in flags]
    assert resume(place, "meant", "--steps", 3, *flags) == 2
    assert said in capsys.readouterr().err
    assert (place / "meant" / "config.json").read_bytes() == settings


def test_a_resumed_run_says_what_changed_and_begins_another_order_with_an_epoch(place, capsys):
    assert run(place, "changed") == 0
    assert resume(place, "changed", "--steps", 1, "--alpha", 4) == 0
    said = capsys.readouterr().err
    assert "Resumed at update 2 with other settings (alpha, steps).\n" in said and "Finished 2 updates" in said
    assert resume(place, "changed", "--steps", 3, "--seed", 5) == 0
    assert "(alpha, seed, steps); the data are others or in another order, from the beginning of an epoch" in capsys.readouterr().err
    state = json.loads((place / "changed" / "checkpoints" / "step-00000003" / "state.json").read_text())
    assert (state["epoch"], state["batch"]) == (1, 1)


def test_an_adapter_is_continued_with_the_mask_and_the_shift_it_was_trained_with(place, capsys):
    assert run(place, "start") == 0
    start = ["--init-adapter", place / "start" / "adapter.safetensors"]
    assert run(place, "on", *start, "--predicts-next-token") == 2
    assert "init_adapter: predicts_next_token of" in capsys.readouterr().err
    assert run(place, "on", *start, "--mask-token", "user") == 2
    assert "init_adapter: mask_token of" in capsys.readouterr().err
    assert run(place, "on", *start) == 0
    (place / "start" / "adapter.safetensors").unlink()
    assert resume(place, "on", "--steps", 3) == 0


@pytest.mark.parametrize("flags", [["--objective", "simplex"], ["--targets", "model.layers.0.self_attn.q_proj"]], ids=["simplex", "a path"])
def test_both_forms_of_an_adapter_decode_alike_also_after_conversion(place, flags):
    name = flags[0].strip("-")
    assert run(place, name, *flags) == 0
    single = read_adapter(save_single_file(place / f"{name}.safetensors", read_adapter(place / name / "peft"), dtype="float32"))
    sources = [place / name / "peft", place / f"{name}.safetensors", write_peft_folder(place / f"{name}-peft", single)]
    answers = []
    for source in sources:
        engine = Engine.load(place / "base", adapter=str(source), device="cpu")
        answers.append(engine.generate("user 1", engine.sampling(max_new_tokens=6, steps=3))[0].token_ids)
    assert answers[0] == answers[1] == answers[2]


def test_an_id_beyond_the_embedding_is_one_sentence(place, capsys):
    base = make_tiny(place / "short")
    tokenizer = json.loads((base / "tokenizer.json").read_text())
    count = len(tokenizer["model"]["vocab"])
    make_tiny(base, vocab_size=count)
    hole = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokenizer["added_tokens"].append({"id": count, "content": "<hole>", **hole})
    (base / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert run(place, "beyond", "--base", base, "--mask-token", "<hole>") == 2
    assert f"id {count} of its tokenizer ('<hole>') is in use" in capsys.readouterr().err


def test_a_base_without_a_chat_template_is_one_sentence(place, capsys):
    base = make_tiny(place / "bare")
    settings = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps({name: value for name, value in settings.items() if name != "chat_template"}))
    assert run(place, "unled", "--base", base) == 2
    error = capsys.readouterr().err
    assert "bare has no chat template" in error and "chat_template to its tokenizer_config.json" in error


def test_a_file_of_settings_may_begin_with_a_byte_order_mark_and_a_list_of_numbers_is_no_list_of_texts(place, capsys):
    file = place / "marked.toml"
    file.write_bytes(b"\xef\xbb\xbfdata = [1]\n")
    assert main(["--config", str(file)]) == 2
    assert "config: data is [1], expected a list of texts" in capsys.readouterr().err
    file.write_text(f"tail_power = 1{'0' * 400}\n")
    assert main(["--config", str(file)]) == 2
    assert "tail_power is 1000" in capsys.readouterr().err


def test_a_signal_that_comes_while_the_plot_is_drawn_ends_nothing(place, monkeypatch, capsys):
    monkeypatch.setattr(train, "plot_losses", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    assert run(place, "drawn", "--plot") == 0
    assert "Finished 2 updates" in capsys.readouterr().err


def test_memory_that_runs_out_is_one_sentence(place, monkeypatch, capsys):
    def full(_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")

    monkeypatch.setattr(Trainer, "update", full)
    assert run(place, "full", "--quiet") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: memory: the device has too little") and error.count("\n") == 1


def test_dropout_depends_on_the_seed_and_the_draw_and_not_on_how_many_processes_share_them():
    def dropped(processes, draw):
        trainer = Trainer.__new__(Trainer)
        trainer.config, trainer.processes = TrainConfig(dropout=0.1, seed=3), processes
        torch.manual_seed(99)
        trainer.seed_dropout(draw)
        return torch.rand(4).tolist()

    alone = [dropped(Processes(), draw) for draw in range(4)]
    assert [dropped(Processes(index, 2), draw) for draw in range(2) for index in range(2)] == alone
    assert len({tuple(values) for values in alone}) == 4


def test_processes_that_find_no_partners_are_one_sentence(monkeypatch):
    pytest.importorskip("accelerate")
    monkeypatch.setattr("accelerate.PartialState", lambda cpu: (_ for _ in ()).throw(ValueError("no MASTER_ADDR\nmore")))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TrainingError, match=r"WORLD_SIZE is 2, but the processes do not join \(no MASTER_ADDR\)"):
        join_processes(uses_cpu=True)
