"""The family bench and the masked evidence run here at sizes that measure nothing; the transcription makes what it says."""

from __future__ import annotations

import copy
import json
import sys

import pytest
import torch
from bench_on_path import ROOT

import bench.families.decode
from bench.families.evidence import claim, exactly, held_out
from bench.families.masked_evidence import copied, fill_claims, main, scores
from bench.families.masked_loop import random_reveal
from bench.report import TABLES, measured
from bench.results import check_result
from lad_engine.text.codec import load_tokenizer
from lad_engine.train import main as train
from lad_engine.training.config import TrainConfig
from lad_engine.training.data import Limits, load_examples, parse_source
from tiny_checkpoint import make_tiny

SENTENCES = (
    "the user is in an hour when others rest on one sea",
    "her answer was heard there as we sat near his warm home",
    "one mast is seen where ten rains wash that old stone shore",
)


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    out = tmp_path_factory.mktemp("families") / "families.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["bench.families.decode", "--quick", "--out", str(out)])
        bench.families.decode.main()
    return json.loads(out.read_text())


def test_one_command_measures_every_family_in_the_one_form(result):
    check_result(result)
    is_cpu = result["device_kind"] == "cpu"
    wanted = {("masked", "random"): 1.3, ("masked", "confidence"): None, ("simplex", "ddpm"): 2.0, ("simplex", "ddim"): None,
              ("latent_ode", "midpoint"): 1.5}  # fmt: skip
    assert {(row["family"], row["loop"]): row["target"] for row in result["rows"]} == {
        name: limit if is_cpu else None for name, limit in wanted.items()
    }
    assert measured([result]) == "Nothing has been measured yet."


def test_the_rows_count_passes_and_rows_on_both_sides(result):
    rows = {(row["family"], row["loop"]): row for row in result["rows"]}
    counted = {name: (row["nfe"], row["head_rows_per_step"], row["transcription"]["head_rows_per_step"]) for name, row in rows.items()}
    # 24 positions in 4 passes: 6 rows a pass where reveals are drawn ahead, all 24 where every position competes, 28 in the plain loop.
    assert counted[("masked", "random")] == (4, 6.0, 28) and counted[("masked", "confidence")] == (4, 24.0, 28)
    assert counted[("simplex", "ddpm")] == counted[("simplex", "ddim")] == (4, 24, 28)
    # 15 evaluations a token, each reads one row; both walk the same path.
    assert counted[("latent_ode", "midpoint")] == (3 * 15, 15, 15) and rows[("latent_ode", "midpoint")]["same_tokens"]
    assert all(row["nfe"] == row["transcription"]["nfe"] for row in rows.values())
    for row in rows.values():
        mine, theirs = (row["times"][who]["median_us"] for who in ("ours", "transcription"))
        assert row["ratios"]["transcription"] == pytest.approx(theirs / mine)


def test_the_table_says_what_was_met(result):
    judged = copy.deepcopy(result)
    for row, limit in zip(judged["rows"], (1.3, None, 2.0, None, 1.5), strict=True):
        row["ratios"]["transcription"], row["target"] = 1.4, limit
    table = TABLES["families"](judged)
    assert "1.40 x (met: ≥ 1.3 x)" in table and "1.40 x (missed: ≥ 2 x)" in table and "1.40 x (missed: ≥ 1.5 x)" in table
    assert table.count("| tiny, float32, B 1, T ") == 5 and table.count("one fp32 number per position") == 2


def test_a_model_of_no_family_asked_for_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench.families.decode", "--families", "masked", "--models", "TESS2-7B"])
    with pytest.raises(SystemExit):
        bench.families.decode.main()
    assert "none of them is a masked model" in capsys.readouterr().err


def test_the_transcribed_nucleus_keeps_the_token_that_crosses():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05, 0.0]).clamp(min=1e-9).log().expand(4000, 1, 5)
    ids = torch.full((4000, 1), 4)
    fixed = torch.zeros_like(ids, dtype=torch.bool)
    drawn, passes = random_reveal(lambda x: logits, ids, fixed, 4, steps=1, temperature=1.0, top_p=0.6)
    assert passes == 1 and sorted(drawn.unique().tolist()) == [0, 1]
    assert abs(float((drawn == 0).float().mean()) - 0.5 / 0.8) < 0.04


def test_the_config_of_the_adaptation_is_one_the_trainer_takes():
    config = TrainConfig.load(ROOT / "bench" / "families" / "masked.toml", {})
    assert (config.objective, config.predicts_next_token, config.profile) == ("masked", True, "diffullama_confidence")
    assert all((ROOT / source.partition("=")[0]).is_file() for source in config.data)


DROPPED = ("steps", "max_length", "max_prompt", "val_", "save_every", "output", "learning_rate")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evidence")
    make_tiny(folder / "base")
    rows = [{"instruction": f"{n} {i}", "output": f"{text} {i}"} for n, text in enumerate(SENTENCES) for i in range(16)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    toml = (ROOT / "bench" / "families" / "masked.toml").read_text()
    lines = [line for line in toml.splitlines() if not line.startswith(("  ", "]", "data", "mask_token", "system_prompt"))]
    lines += [f'data = ["{folder / "data.jsonl"}"]', f'base = "{folder / "base"}"', 'mask_token = "MASK"']
    kept = [line for line in lines if not line.startswith(DROPPED)]
    kept += ["steps = 150", "val_every = 1000", "save_every = 1000", "val_examples = 4", "max_length = 160", "val_share = 0.2"]
    kept += ["learning_rate = 1e-2", f'output = "{folder / "run"}"', 'device = "cpu"']
    (folder / "masked.toml").write_text("\n".join(kept) + "\n")
    return folder


def test_an_adaptation_recovers_words_and_fills_gaps_better_than_copying(place, capsys):
    assert train(["--config", str(place / "masked.toml"), "--no-plot", "--quiet"]) == 0
    arguments = ["--config", str(place / "masked.toml"), "--adapter", str(place / "run" / "adapter.safetensors")]
    assert main([*arguments, "--examples", "8", "--gaps", "6", "--steps", "6", "--out", str(place / "out.json")]) == 0
    result = json.loads((place / "out.json").read_text())
    check_result(result)
    (row,) = result["rows"]
    claims = row["claims"]
    assert len(claims) == 5 and all(one["holds"] and one["low"] <= one["gain"] <= one["high"] for one in claims)
    assert claims[0]["gain"] > 0.2 and claims[0]["is_clear"] and len(row["samples"]) == 6
    assert [line["step"] for line in row["curve"] if "val_loss" in line] == [0, 150]
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["rows"] == result["rows"]
    claims[4] |= {"low": -0.1, "is_clear": False}
    claims[3] |= {"holds": False, "is_clear": False}
    table = TABLES["families_evidence"]({**result, "rows": [{**row, "plot": "masked.png"}]})
    assert (table.count("| holds |"), table.count("| holds, within chance |"), table.count("| does not hold |")) == (3, 1, 1)
    assert "[bench/results/masked.png](bench/results/masked.png)" in table


def test_held_out_text_shares_no_question_and_no_answer_with_training(tmp_path):
    make_tiny(tmp_path)
    codec = load_tokenizer(tmp_path)
    rows = [{"instruction": f"ask {i % 30}", "output": f"say {i % 25 if i % 2 else i}"} for i in range(200)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = TrainConfig(data=(str(tmp_path / "data.jsonl"),), val_share=0.3, max_length=160)
    limits = Limits(config.max_length, config.max_prompt, config.max_chars, config.too_long, config.system_prompt)
    _, kept, _ = load_examples(map(parse_source, config.data), codec, limits, config.val_share)
    with pytest.raises(ValueError, match="no held-out text is left"):
        held_out(config, codec)
    rows += [{"instruction": f"other {i}", "output": f"else {i}"} for i in range(40)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fresh = held_out(config, codec)
    assert 0 < len(fresh) < len(kept) + 40 and (fresh.key[:-1] <= fresh.key[1:]).all()
    assert all(codec.decode(fresh.answer(i)).startswith("else") for i in range(len(fresh)))


def test_a_claim_compares_the_same_examples_and_says_how_sure_it_is():
    ours, theirs = [(n % 7 + 1.0, 7.0) for n in range(50)], [(n % 7 + 0.0, 7.0) for n in range(50)]
    found = claim("x", ours, theirs)
    # The difference is the same in every example, however much they differ from one another.
    assert found["gain"] == pytest.approx(1 / 7) == pytest.approx(found["low"]) == pytest.approx(found["high"])
    assert found["holds"] and found["is_clear"] and found["n"] == 50 and found == claim("x", ours, theirs)
    assert not claim("x", ours, theirs, lower_is_better=True)["holds"]
    noisy = claim("x", [(float(n % 2), 1.0) for n in range(40)], [(float((n + 1) % 2), 1.0) for n in range(39)] + [(0.5, 1.0)])
    assert noisy["low"] < 0 < noisy["high"] and not noisy["is_clear"]
    # A text without tokens counts nothing on its side alone.
    assert claim("x", [(1.0, 1.0), (0.0, 0.0)], [(1.0, 2.0), (1.0, 2.0)])["value"] == 1.0
    assert not exactly("x", 3, 4)["holds"]


def test_copying_takes_the_words_beside_the_gap():
    case = {"left": "a b c d", "gap": " e f", "right": " g h i"}
    assert (copied(case, "left"), copied(case, "right")) == ("c d", "g h")
    assert scores("rouge_2", ["e f"], [case]) == [(1.0, 1.0)] and scores("rouge_1", ["c d"], [case]) == [(0.0, 1.0)]
    right, wrong = fill_claims(["e f"], [case]), fill_claims(["x y"], [case])
    assert all(one["holds"] for one in right) and not any(one["holds"] for one in wrong)
    # Copying counts by its better side.
    echo = {"left": "a e f", "gap": " e f", "right": " g h"}
    assert [one["against"] for one in fill_claims(["e f"], [echo])] == [1.0, 1.0, 1.0]
