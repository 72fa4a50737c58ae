"""The command line and the drop-ins on a tiny random checkpoint, through the real engine."""

import json

import pytest

from lad_engine import Engine, generate
from lad_engine.compat import denoise
from tiny_checkpoint import make_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(make_tiny(tmp_path_factory.mktemp("tiny")))


def run(model, *argv):
    return generate.main([*map(str, argv), "--model", model, "--adapter", "none", "--dtype", "float32", "--profile", "paper"])


def test_json_trace_and_replay_agree(model, tmp_path, capsys):
    trace = tmp_path / "trace.jsonl"
    request = ("the user", "--steps", 3, "--max-new-tokens", 8, "--seed", 5, "--no-early-stop", "--json")
    assert run(model, *request, "--trace", trace) == 0
    recorded = json.loads(capsys.readouterr().out)
    assert recorded["nfe"] == 3 and len(recorded["token_ids"]) == len(recorded["confidences"]) == 8
    assert run(model, *request) == 0
    alone = json.loads(capsys.readouterr().out)
    assert {**alone, "timings": None} == {**recorded, "timings": None}
    assert generate.main(["--replay", str(trace), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == recorded
    steps = [record for record in map(json.loads, trace.read_text().splitlines()) if record["type"] == "step"]
    assert len(steps) == 3 and steps[-1]["token_ids"] == recorded["token_ids"]


def test_the_fixed_words_of_an_infill_stay(model, capsys):
    assert run(model, "why?", "--infill", "the [[3]] user is [[2]] on", "--steps", 2) == 0
    answer = capsys.readouterr().out
    assert answer.startswith("the") and " user is" in answer and answer.rstrip("\n").endswith(" on")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("a", "--max-new-tokens", 600), "expected at most 512 (the model's window)"),
        (("a", "--mask-token", "HOLE"), "mask token: 'HOLE' is 2 tokens"),
        (("a", "--format", "space"), "expected a Llama 3 vocabulary"),
        (("a", "--block-length", 4), "block_length is 4, expected it only with"),
        (("a", "--ops", "attention=fast"), "attention"),
        (("a", "--device", "abacus"), "device is 'abacus'"),
    ],
)
def test_what_only_the_model_can_refuse_is_one_sentence_too(model, argv, message, capsys):
    assert run(model, *argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and message in err


def test_the_authors_names_decode(model):
    engine = Engine.load(model, adapter=None, dtype="float32")
    shares = []
    settings = {"max_new_tokens": 6, "num_steps": 3, "noise_level": 0.5, "permanent_unmask": True}
    text, status = denoise(engine, "the user", None, **settings, progress=lambda share, _: shares.append(share))
    assert shares[-1] == 1.0 and status.startswith("Denoising step") and isinstance(text, str)
    assert denoise(engine, "the user", None, **settings)[0] == text
    assert denoise(engine, "the user", None, context_window=64, max_it=2, added_tokens=256, clustering=0.2)[1].startswith(
        "Denoising step 2/2"
    )
