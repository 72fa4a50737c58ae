"""The command line on a tiny TESS 2 checkpoint: the same flags, steps as they come, and other families' options refused by name."""

from __future__ import annotations

import json

import pytest
from tiny_simplex import make_reward, make_tess

from lad_engine import Engine
from lad_engine.generate import main


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("simplex")
    return str(make_tess(root / "tess2")), str(make_reward(root / "reward"))


def test_a_checkpoint_streams_its_steps_and_answers(folders, capsys):
    asked = ["--model", folders[0], "the user", "--steps", "4", "--max-new-tokens", "6", "--seed", "5", "--show-steps", "--json"]
    assert main(asked) == 0
    out = capsys.readouterr()
    record = json.loads(out.out)
    assert record["nfe"] == record["steps"] == 4 and record["profile"] == "tess2" and len(record["token_ids"]) == 6
    assert len([line for line in out.err.splitlines() if "/4" in line or "step" in line.lower()]) >= 4
    assert main(asked) == 0 and json.loads(capsys.readouterr().out)["token_ids"] == record["token_ids"]


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--remasking", "none"], "remasking"),
        (["--cfg-scale", "1"], "cfg_scale"),
        (["--top-k", "3"], "top_k"),
        (["--reveal", "origin"], "reveal"),
    ],
)
def test_options_of_other_families_are_refused_by_name(folders, capsys, flags, named):
    assert main(["--model", folders[0], "hi", "--steps", "2", *flags]) == 2
    said = capsys.readouterr().err
    assert named in said and "decodes as simplex" in said


def test_reward_guidance_changes_the_answer_and_needs_its_model(folders, capsys):
    asked = ["--model", folders[0], "hi", "--steps", "3", "--max-new-tokens", "5", "--json"]
    assert main(asked) == 0
    plain = json.loads(capsys.readouterr().out)["token_ids"]
    assert main([*asked, "--reward-model", folders[1], "--reward-scale", "2000"]) == 0
    assert json.loads(capsys.readouterr().out)["token_ids"] != plain
    assert main([*asked, "--reward-scale", "1"]) == 2
    assert "has no reward model" in capsys.readouterr().err
    assert main([*asked, "--reward-steps", "2"]) == 2
    assert "reward_scale above 0" in capsys.readouterr().err


@pytest.mark.parametrize("transition", ["ddpm", "ddim"])
def test_captured_drivers_give_the_eager_tokens(folders, transition):
    tokens = {}
    for driver in ("eager", "replay", "loop"):
        engine = Engine.load(folders[0], driver=driver)
        params = [engine.sampling(steps=steps, max_new_tokens=9, seed=steps, transition=transition) for steps in (5, 3, 5)]
        tokens[driver] = [result.token_ids for result in engine.generate(["the user", "a", "an answer is"], params)]
    assert tokens["eager"] == tokens["replay"] == tokens["loop"]
