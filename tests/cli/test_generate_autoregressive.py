"""`--autoregressive` on the command line: the base alone, and no flag that only diffusion decoding reads."""

import json

import pytest
from fake_engine import FakeEngine

from lad_engine import generate


class ContinuingEngine(FakeEngine):
    """Answers autoregressively only."""

    adapter_facts = None

    def stream(self, prompts, params=None):
        raise AssertionError("the denoiser was asked")

    def generate_autoregressive(self, prompts, params=None):
        self.batches.append(prompts)
        self.params = params
        return [self._result(prompt, params) for prompt in prompts]


def run(*argv):
    engine = ContinuingEngine()
    return generate.main([*map(str, argv), "--autoregressive"], load=engine.load), engine


def test_the_base_alone_answers_greedily(capsys):
    code, engine = run("What?", "--json")
    assert code == 0 and json.loads(capsys.readouterr().out)["profile"] == "autoregressive"
    assert engine.load_arguments["adapter"] is None and engine.load_arguments["config"].mask_token is None
    assert (engine.params.temperature, engine.params.top_k, engine.params.top_p) == (0.0, 0, 1.0)


def test_sampling_settings_and_batches_arrive(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("one\ntwo\nthree\n")
    settings = (
        "--temperature",
        0.7,
        "--top-k",
        40,
        "--top-p",
        0.9,
        "--max-new-tokens",
        12,
        "--seed",
        3,
        "--stop",
        "end",
        "--batch-size",
        2,
    )
    code, engine = run("--prompts", file, *settings)
    assert code == 0 and [len(batch) for batch in engine.batches] == [2, 1]
    params = engine.params
    assert (params.temperature, params.top_k, params.top_p, params.max_new_tokens, params.seed, params.stop) == (
        0.7,
        40,
        0.9,
        12,
        3,
        ("end",),
    )


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--steps", 4], "--steps"),
        (["--noise-start", 0.5], "--noise-start"),
        (["--cfg-scale", 1], "--cfg-scale"),
        (["--no-early-stop"], "--early-stop"),
        (["--remasking", "none"], "--remasking"),
        (["--profile", "paper"], "--profile"),
        (["--draft", "Paris"], "--draft"),
        (["--show-steps"], "--show-steps"),
        (["--no-merge"], "--no-merge"),
        (["--mask-token", "M"], "--mask-token"),
        (["--adapter", "mine"], "--adapter is mine"),
    ],
)
def test_flags_that_say_nothing_here_are_refused_by_name(flags, named, capsys):
    code, engine = run("What?", *flags)
    assert code == 2 and not engine.batches
    error = capsys.readouterr().err
    assert error.startswith(f"error: {named}") and error.count("\n") == 1


def test_no_adapter_may_be_said(capsys):
    assert run("What?", "--adapter", "none")[0] == 0
