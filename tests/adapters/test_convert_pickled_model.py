"""A model folder saved as pytorch_model.bin, as L2D's are, becomes safetensors with the same answers; a hostile one runs nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_families import make_family

from lad_engine import Engine
from lad_engine.convert import main
from lad_engine.errors import CheckpointError
from tiny_latent import as_pickle, make_tiny_latent


@pytest.fixture(scope="module")
def safe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_latent(tmp_path_factory.mktemp("l2d"), classes=2)


def pickled(folder: Path, shards: int = 1) -> Path:
    return as_pickle(make_tiny_latent(folder, classes=2), shards)


def answer(folder: Path, **settings: int) -> list[int]:
    engine = Engine.load(folder)
    return engine.generate("the user", engine.sampling(**settings))[0].token_ids


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("shards", [1, 3])
def test_a_pickled_checkpoint_answers_as_the_safe_one(safe: Path, shards: int, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source = pickled(tmp_path / "in", shards)
    with pytest.raises(CheckpointError, match=r"is a pickle, which is never loaded; convert it once with: python -m lad_engine\.convert"):
        Engine.load(source)
    assert main([str(source), str(tmp_path / "out")]) == 0
    assert "llama model that decodes as latent_ode" in capsys.readouterr().out
    stored, expected = load_file(tmp_path / "out" / "model.safetensors"), load_file(safe / "model.safetensors")
    # The copies under wrapped_layer stay behind, everything else is as it was.
    assert stored.keys() == expected.keys()
    assert all(torch.equal(stored[name], expected[name]) for name in expected)
    assert answer(tmp_path / "out", max_new_tokens=4) == answer(safe, max_new_tokens=4)


def test_large_ones_are_written_in_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lad_engine.adapters.shards.SHARD_BYTES", 100_000)
    assert main([str(pickled(tmp_path / "in")), str(tmp_path / "out")]) == 0
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 1
    assert answer(tmp_path / "out", max_new_tokens=2)


@pytest.mark.parametrize("name", ["diffugpt", "llada"])
def test_other_families_are_converted_the_same_way(name: str, tmp_path: Path) -> None:
    source = make_family(tmp_path / "in", name)
    tensors = {key: value for file in source.glob("*.safetensors") for key, value in load_file(file).items()}
    expected = answer(source, max_new_tokens=8, steps=2)
    for file in (*source.glob("*.safetensors"), *source.glob("*.index.json")):
        file.unlink()
    torch.save(tensors, source / "pytorch_model.bin")
    assert main([str(source), str(tmp_path / "out")]) == 0
    assert answer(tmp_path / "out", max_new_tokens=8, steps=2) == expected


@pytest.mark.parametrize("where", ["beside", "inside"])
def test_a_hostile_pickle_executes_nothing_and_leaves_nothing(where: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source, mark = pickled(tmp_path / "in"), tmp_path / "executed"
    tensors = torch.load(source / "pytorch_model.bin", weights_only=True)
    hostile = Hostile(mark)
    tensors["model.norm.weight" if where == "inside" else "extra"] = hostile
    torch.save(tensors, source / "pytorch_model.bin")
    assert main([str(source), str(tmp_path / "out")]) == 2
    out, error = capsys.readouterr()
    assert out == "" and error.count("\n") == 1
    assert "mkdir, expected only tensors and known model classes. Nothing of it was executed" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_what_does_not_fit_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source = pickled(tmp_path / "in", shards=2)
    index = source / "pytorch_model.bin.index.json"
    kept = index.read_text()

    def refused(words: str, *more: str) -> None:
        assert main([str(source), str(tmp_path / "out"), *more]) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1 and not (tmp_path / "out").exists()

    refused("is a whole model, which --to peft says nothing about", "--to", "peft")
    refused("which --mask-token, --next-position says nothing about", "--mask-token", "MASK", "--next-position")
    index.write_text(json.dumps({"weight_map": {"x": "../elsewhere.bin"}}))
    refused("names ['../elsewhere.bin'], expected files beside it")
    index.write_text("{}")
    refused("names [], expected files beside it")
    index.write_text(kept)
    first, second = sorted(source.glob("pytorch_model-*.bin"))
    tensors = torch.load(second, weights_only=True)
    missing = next(name for name in tensors if name.endswith("flow_q_proj.B"))
    torch.save({name: tensor for name, tensor in tensors.items() if name != missing}, second)
    refused(f"its weights cannot be used: {source}: {missing} is missing")
    twice = next(iter(torch.load(first, weights_only=True)))
    torch.save({**tensors, twice: torch.zeros(2)}, second)
    refused(f"{twice} is in {first.name} too, expected it once")
