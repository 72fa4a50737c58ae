"""Every line of README.md's table of systems runs as it stands there, streams, answers in JSON, and refuses other systems' settings."""

from __future__ import annotations

import json
import shlex

import pytest
from bench_on_path import ROOT
from tiny_systems import make_systems

from lad_engine import convert, generate

SECTION = (ROOT / "README.md").read_text(encoding="utf-8").partition("\n## Systems\n")[2].partition("\n## ")[0]
FENCED = SECTION.partition("```bash\n")[2].partition("```")[0].splitlines()
LINES = [shlex.split(line, comments=True) for line in FENCED if "runs/tiny/" in line]
GENERATED = [line[3:] for line in LINES if line[2] == "lad_engine.generate"]
# A setting of another system, per model of the lines.
FOREIGN = {
    "diffugpt": ("noise_start", "--noise-start 0.5"),
    "diffullama": ("solver", "--solver rk4"),
    "llada": ("transition", "--transition ddim"),
    "dream": ("remasking", "--remasking random"),
    "tess2": ("reveal", "--reveal origin"),
    "l2d": ("transition", "--transition ddim"),
}


def model_of(line):
    return line[line.index("--model") + 1].rpartition("/")[2]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("systems")
    make_systems(folder)
    return folder


def placed(line, folder):
    return [part.replace("runs/tiny", str(folder)) for part in line]


def test_every_system_has_a_row_and_a_line():
    rows = [line.split("|")[1].strip() for line in SECTION.splitlines() if line.startswith("| ")][1:]
    assert rows == ["LAD", "DiffuGPT, DiffuLLaMA", "LLaDA", "Dream", "TESS 2", "L2D"]
    assert [model_of(line) for line in GENERATED] == list(FOREIGN) and len(LINES) == len(GENERATED) + 1
    assert FENCED[0].startswith("python tests/tiny_systems.py runs/tiny")


@pytest.mark.parametrize("line", GENERATED, ids=model_of)
def test_a_line_decodes_streams_and_answers_in_json(tiny, line, capsys):
    assert generate.main(placed(line, tiny)) == 0
    plain = capsys.readouterr().out
    assert generate.main([*placed(line, tiny), "--show-steps", "--json"]) == 0
    out, err = capsys.readouterr()
    record = json.loads(out)
    assert record["text"] == plain.rstrip("\n") or record["text"].strip() == plain.strip()
    assert err.count("step ") == record["steps"] > 0 and record["nfe"] >= record["steps"]


@pytest.mark.parametrize("line", GENERATED, ids=model_of)
def test_what_another_system_reads_is_refused_by_name(tiny, line, capsys):
    name, flags = FOREIGN[model_of(line)]
    assert generate.main([*placed(line, tiny), *flags.split()]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith(f"error: {name} is given, but this checkpoint decodes as")


def test_the_pickled_checkpoint_is_converted_and_decodes(tiny, capsys):
    (line,) = [line[3:] for line in LINES if line[2] == "lad_engine.convert"]
    source, target = placed(line, tiny)
    assert convert.main([source, target]) == 0
    assert generate.main(["the user", "--model", target, "--max-new-tokens", "3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["profile"] == "l2d"
