"""Finished examples on disk: batches are redone whole, and what was written is read again."""

from __future__ import annotations

from pathlib import Path

import pytest

from lad_engine.evaluation.ledger import Ledger
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


def test_what_is_finished_is_read_again_whatever_it_says_and_wherever_the_last_line_was_cut(tmp_path: Path):
    # Line breaks to str.splitlines, and none to JSON Lines.
    path, example, row = tmp_path / "l.jsonl", Example("1", "x"), {"text": "one\u2028two\x85three\u2029é"}
    Ledger(path).run("k", [example], lambda _: [row], 1, lambda *_: None)
    whole = path.read_bytes()
    # Inside the two bytes of the last letter.
    path.write_bytes(whole + whole[: whole.rindex("é".encode()) + 1])
    assert Ledger(path).run("k", [example], lambda _: pytest.fail("done again"), 1, lambda *_: None) == [row]
    assert path.read_bytes() == whole
