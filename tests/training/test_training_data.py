"""Data: reading, filtering, splitting, order and canvases."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest

from lad_engine.errors import TrainingError
from lad_engine.text.codec import load_tokenizer
from lad_engine.training.batches import BatchOrder, Position, lay_out_batch, window_length
from lad_engine.training.data import Examples, Limits, Source, load_examples, parse_source, read_rows
from tiny_checkpoint import make_tiny

LIMITS = Limits(max_length=96, max_prompt=None, max_chars=896, too_long="drop", system_prompt="")
ROWS = [{"instruction": f"say {i}", "input": "now" if i % 2 else "", "output": f"the {i} " * (1 + i % 3)} for i in range(40)]


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    return load_tokenizer(make_tiny(tmp_path_factory.mktemp("tiny")))


def write(path, rows):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def test_examples_are_the_chat_template_and_the_answer_without_overlap_of_the_split(codec, tmp_path):
    odd = [ROWS[0], {"instruction": " ", "output": "x"}, {"instruction": "long", "output": "y" * 900}]
    path = write(tmp_path / "a.jsonl.gz", [*ROWS, *odd])
    train, validation, counts = load_examples([Source(str(path), 1.0)], codec, LIMITS, 0.3)
    assert counts["repeated"] == 1 and counts["empty"] == 1 and counts["too_many_chars"] == 1
    assert counts["kept"] == len(train) + len(validation) == 40
    assert 0 < len(validation) < 25
    assert not set(train.key) & set(validation.key)
    texts = {codec.decode(part.prompt(i), skip_special=False) for part in (train, validation) for i in range(len(part))}
    assert "<|im_start|>system\n<|im_end|>\n<|im_start|>user\nsay 1\nnow<|im_end|>\n<|im_start|>assistant\n" in texts
    assert all(codec.decode(train.answer(i)).startswith("the ") for i in range(len(train)))
    again, _, _ = load_examples([Source(str(write(tmp_path / "b.jsonl", ROWS[::-1])), 1.0)], codec, LIMITS, 0.3)
    assert set(again.key) == set(train.key)


def test_a_row_s_own_system_prompt_stands_over_the_run_s_and_makes_another_example(codec, tmp_path):
    row = {"instruction": "go", "output": "I go."}
    rows = [row, {**row, "system": "Be kind."}, {**row, "system": ""}, {**row, "system": "Be kind."}]
    path = write(tmp_path / "a.jsonl", [*rows, {**row, "output": "No.", "system": None}])
    train, _, counts = load_examples([Source(str(path), 1.0)], codec, Limits(96, None, 896, "drop", "Be brief."), 0.0)
    prompts = [codec.decode(train.prompt(i), skip_special=False) for i in range(len(train))]
    assert [text.split("<|im_end|>")[0] for text in prompts] == [f"<|im_start|>system\n{s}" for s in ("Be brief.", "Be kind.", "Be brief.")]
    # An empty one names nothing: it is the same text as the row without any.
    assert counts["repeated"] == 2
    path = write(tmp_path / "b.jsonl", [{**row, "system": ""}])
    train, _, _ = load_examples([Source(str(path), 1.0)], codec, Limits(96, None, 896, "drop", "Be brief."), 0.0)
    assert codec.decode(train.prompt(0), skip_special=False).startswith("<|im_start|>system\n<|im_end|>")


def test_examples_beyond_the_window_are_dropped_or_cut(codec, tmp_path):
    path = write(tmp_path / "a.jsonl", [{"instruction": "go", "output": "z" * 200}, {"instruction": "go", "output": "z"}])
    train, _, counts = load_examples([Source(str(path), 1.0)], codec, LIMITS, 0.0)
    assert (len(train), counts["too_long"]) == (1, 1)
    cut, _, _ = load_examples([Source(str(path), 1.0)], codec, Limits(96, None, 896, "truncate", ""), 0.0)
    assert sorted(cut.total)[-1] == 96


def test_what_cannot_be_read_is_one_sentence(tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"instruction": "a", "output": "b"}\n{"instruction": 3}\n')
    with pytest.raises(TrainingError, match=r"bad\.jsonl line 2 lacks text fields"):
        list(read_rows(Source(str(bad), 1.0)))
    for row, said in (
        ('{"instruction": "a", "output": "b", "input": 5}', "input is 5, expected text"),
        ('{"instruction": "a", "output": "\\ud800"}', "output is '.ud800', expected text that UTF-8 can hold"),
        ("[" * 100_000, "is not JSON"),
    ):
        bad.write_text(row)
        with pytest.raises(TrainingError, match=rf"bad\.jsonl line 1:? {said}"):
            list(read_rows(Source(str(bad), 1.0)))
    bad.write_text("{nonsense\n")
    with pytest.raises(TrainingError, match="line 1 is not JSON"):
        list(read_rows(Source(str(bad), 1.0)))
    (tmp_path / "c.jsonl.gz").write_bytes(b"plain")
    for name in ("missing.jsonl", "c.jsonl.gz"):
        with pytest.raises(TrainingError, match="cannot be read"):
            list(read_rows(Source(str(tmp_path / name), 1.0)))
    assert parse_source("x.jsonl=0.5") == Source("x.jsonl", 0.5)
    for weight in ("-1", "1e300"):
        with pytest.raises(TrainingError, match=rf"weight of x\.jsonl is '{weight}'"):
            parse_source(f"x.jsonl={weight}")
    packed = bytearray(gzip.compress(b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)))
    packed[40:60] = b"\xff" * 20
    (tmp_path / "d.jsonl.gz").write_bytes(packed)
    with pytest.raises(TrainingError, match=r"d\.jsonl\.gz cannot be read"):
        list(read_rows(Source(str(tmp_path / "d.jsonl.gz"), 1.0)))


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_a_byte_order_mark_and_other_line_ends_are_no_part_of_a_row(tmp_path, name):
    text = b"\xef\xbb\xbf" + b"\r\n\r\n".join(json.dumps(row).encode() for row in ROWS[:3])
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    assert list(read_rows(Source(str(tmp_path / name), 1.0))) == ROWS[:3]


def test_where_nothing_is_left_the_sentence_says_why_and_what_helps(codec, tmp_path):
    def said(rows, limits=LIMITS, val_share=0.0):
        with pytest.raises(TrainingError, match="nothing is left to train on") as caught:
            load_examples([Source(str(write(tmp_path / "a.jsonl", rows)), 1.0)], codec, limits, val_share)
        return str(caught.value)

    assert "(40 for validation)" in said(ROWS, val_share=1.0) and said(ROWS, val_share=1.0).endswith("Lower val_share.")
    assert "(no rows)" in said([])
    assert "(1 empty)" in said([{"instruction": "", "output": "x"}])
    assert said([{"instruction": "x" * 900, "output": "x"}]).endswith("Raise max_chars.")
    assert said(ROWS, Limits(96, 1, 896, "drop", "")).endswith("Raise max_length or max_prompt.")


def made(count, weight=1.0):
    lengths = np.random.default_rng(0).integers(1, 30, count)
    return Examples([np.arange(3, 8, dtype=np.int32)] * count, [np.full(n, 9, np.int32) for n in lengths], range(count), [weight] * count)


def test_an_epoch_holds_every_example_once_and_depends_on_seed_and_epoch_only():
    examples = made(100)
    order = BatchOrder(examples, 10, seed=3)
    first = [tuple(batch) for batch in order.batches(0)]
    assert sorted(i for batch in first for i in batch) == list(range(100))
    assert first != [tuple(batch) for batch in order.batches(1)]
    assert first == [tuple(batch) for batch in BatchOrder(examples, 10, seed=3).batches(0)]
    position = Position()
    taken = [tuple(order.take(position)) for _ in range(12)]
    assert taken[:10] == first and (position.epoch, position.batch) == (1, 2)
    assert sum(len(batch) for batch in BatchOrder(made(100, 2.5), 10, seed=0).batches(0)) == pytest.approx(250, abs=30)


def test_what_fills_no_batch_is_drawn_anew_every_epoch_and_never_the_longest_for_that():
    examples = made(10)
    order = BatchOrder(examples, 4, seed=0)
    epochs = [{int(i) for batch in order.batches(epoch) for i in batch} for epoch in range(30)]
    assert all(len(seen) == 8 for seen in epochs)
    assert set.union(*epochs) == set(range(10))


def test_an_epoch_that_draws_no_example_is_one_batch_of_the_usual_size():
    assert [len(batch) for batch in BatchOrder(made(100, 1e-9), 10, seed=0).batches(0)] == [10]


def test_a_canvas_is_prompt_answer_and_eos_to_the_end():
    examples = made(4)
    batch = lay_out_batch(examples, np.array([2, 0]), eos_id=1, window=40)
    length = examples.answer_length[2]
    assert batch.ids[0].tolist() == [3, 4, 5, 6, 7] + [9] * length + [1] * (35 - length)
    assert batch.first_eos.tolist() == [5 + length, 5 + examples.answer_length[0]]
    assert [window_length(least, 96, 2, 3.0, draw) for least, draw in ((20, 0.0), (20, 0.999), (95, 0.5))] == [22, 96, 96]
