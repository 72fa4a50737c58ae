"""`python -m lad_engine.generate` on an L2D checkpoint: the same flags, steps as they come, and refusals by name."""

from __future__ import annotations

import json

import pytest

from lad_engine.generate import main
from tiny_checkpoint import make_tiny
from tiny_latent import make_tiny_latent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(make_tiny_latent(tmp_path_factory.mktemp("latent"), classes=2))


def answered(capsys, *arguments: str) -> list[dict]:
    assert main([*arguments, "--json"]) == 0, capsys.readouterr().err
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_it_decodes_by_what_the_checkpoint_is(folder, capsys):
    (record,) = answered(capsys, "the user", "--model", folder, "--max-new-tokens", "5")
    assert record["profile"] == "l2d" and record["nfe"] == 15 * record["steps"] and record["steps"] <= 5
    (again,) = answered(capsys, "the user", "--model", folder, "--max-new-tokens", "5")
    assert again["token_ids"] == record["token_ids"]


def test_steps_are_streamed_token_by_token(folder, capsys, tmp_path):
    trace = tmp_path / "trace.jsonl"
    answered(capsys, "the user", "--model", folder, "--max-new-tokens", "4", "--steps", "3", "--show-steps", "--trace", str(trace))
    steps = [one for one in map(json.loads, trace.read_text().splitlines()) if one["type"] == "step"]
    assert [len(step["token_ids"]) for step in steps] == list(range(1, len(steps) + 1))


def test_drivers_and_solvers_are_flags(folder, capsys):
    common = ("an", "--model", folder, "--max-new-tokens", "3", "--solver", "rk4", "--steps", "9", "--flow-end", "0.99")
    (eager,) = answered(capsys, *common, "--flow-label", "1", "--cfg-scale", "0.5")
    (replayed,) = answered(capsys, *common, "--flow-label", "1", "--cfg-scale", "0.5", "--driver", "replay")
    assert eager["token_ids"] == replayed["token_ids"] and eager["nfe"] == replayed["nfe"]
    (adaptive,) = answered(capsys, "an", "--model", folder, "--max-new-tokens", "2", "--profile", "l2d_adaptive", "--steps", "20")
    assert 0 < adaptive["nfe"] <= 2 * 20


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--noise-start", "0.5"), "noise_start is given, but this checkpoint decodes as latent_ode"),
        (("--reveal", "confidence"), "reveal is given, but this checkpoint decodes as latent_ode"),
        (("--mask-token", "an"), "mask_token is given, but this checkpoint decodes as latent_ode, which hides nothing"),
        (("--draft", "an"), "the answer holds given text"),
        (("--flow-label", "2"), "flow_label is 2, expected 0 to 1"),
        (("--flow-power", "1"), "flow_power is 1.0, expected it only with flow_temperature above 0"),
        (("--precision", "int8_weights"), "the weights are in 8 bits, expected auto"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_what_it_does_not_read_is_refused_by_name(folder, capsys, flags, words):
    assert main(["the user", "--model", folder, "--max-new-tokens", "4", *flags]) == 2
    assert words in capsys.readouterr().err


def test_its_settings_are_refused_elsewhere(capsys, tmp_path):
    assert main(["hello", "--model", str(make_tiny(tmp_path)), "--adapter", "none", "--solver", "rk4"]) == 2
    assert "solver is given, but this checkpoint decodes as lad" in capsys.readouterr().err
