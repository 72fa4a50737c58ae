"""What evaluations write: finished examples are redone in whole batches and read again, and results replace plain files alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lad_engine.errors import LadError
from lad_engine.evaluation.ledger import Ledger
from lad_engine.evaluation.report import write_trials
from lad_engine.evaluation.sets import Example


def test_a_batch_is_redone_whole(tmp_path: Path):
    examples, calls = [Example(str(n), "x") for n in range(3)], []

    def work(batch):
        calls.append([one.id for one in batch])
        return [{"n": one.id} for one in batch]

    first = Ledger(tmp_path / "l.jsonl").run("k", examples, work, 2, lambda *_: None)
    lines = (tmp_path / "l.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "l.jsonl").write_text(lines[0] + lines[2])
    again = Ledger(tmp_path / "l.jsonl").run("k", examples, work, 2, lambda *_: None)
    assert first == again and calls == [["0", "1"], ["2"], ["0", "1"]]


def test_an_example_that_says_something_else_is_done_again(tmp_path: Path):
    path, calls = tmp_path / "l.jsonl", []

    def run(example: Example) -> None:
        Ledger(path).run("k", [example], lambda batch: calls.append(batch[0]) or [{"n": 1}], 1, lambda *_: None)

    first, corrected = Example("1", "x", ("a", "b"), 0), Example("1", "x", ("a", "b"), 1)
    for example in (first, first, corrected, corrected):
        run(example)
    assert calls == [first, corrected]
    # What an earlier version kept is believed.
    path.write_text('{"key": "k", "id": "1", "row": {"n": 1}}\n')
    run(first)
    assert calls == [first, corrected]


def test_what_is_finished_is_read_again_whatever_it_says_and_wherever_the_last_line_was_cut(tmp_path: Path):
    # Line breaks to str.splitlines, and none to JSON Lines.
    path, example, row = tmp_path / "l.jsonl", Example("1", "x"), {"text": "one\u2028two\x85three\u2029é"}
    Ledger(path).run("k", [example], lambda _: [row], 1, lambda *_: None)
    whole = path.read_bytes()
    # Inside the two bytes of the last letter.
    path.write_bytes(whole + whole[: whole.rindex("é".encode()) + 1])
    assert Ledger(path).run("k", [example], lambda _: pytest.fail("done again"), 1, lambda *_: None) == [row]
    assert path.read_bytes() == whole


def test_a_result_replaces_a_file_whole_and_nothing_else(tmp_path: Path):
    out = tmp_path / "r.json"
    out.write_text("old")
    assert write_trials(out, "words", [{"name": "a"}]) == out and '"name": "a"' in out.read_text()
    with pytest.raises(ValueError, match="JSON compliant"):
        write_trials(out, "words", [{"name": float("nan")}])
    assert '"name": "a"' in out.read_text() and [path.name for path in tmp_path.iterdir()] == ["r.json"]
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(LadError, match="pipe: is no regular file"):
        write_trials(tmp_path / "pipe", "words", [])
    assert (tmp_path / "pipe").is_fifo()
