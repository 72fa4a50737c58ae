"""A trace holds everything the live view showed, and plays again without a model."""

import io
import json

import pytest
from fake_engine import END, MASK, PIECES, FakeEngine
from rich.console import Console

from lad_engine import generate
from lad_engine.contracts import StepEvent
from lad_engine.terminal.arguments import parse
from lad_engine.terminal.live import CanvasPainter, LiveView, confidence_style, printable
from lad_engine.terminal.progress import LoadProgress
from lad_engine.terminal.replay import painter_of, played
from lad_engine.terminal.trace import read_trace


@pytest.fixture
def trace(tmp_path):
    path = tmp_path / "trace.jsonl"
    prompts = tmp_path / "prompts"
    prompts.write_text("one\ntwo\nthree\n")
    assert generate.main(["--prompts", str(prompts), "--batch-size", "2", "--trace", str(path), "--seed", "4"], load=FakeEngine().load) == 0
    prompts.unlink()
    return path


def painter():
    return CanvasPainter(PIECES.get, MASK, (END,))


def event(**changes):
    values = {
        "index": 0, "step": 0, "steps": 4,
        "token_ids": (2, MASK, 7, END), "predicted_ids": (2, 3, 7, END), "confidences": (1.0, 0.2, 0.5, 0.9),
        "status": ("settled", "masked", "new", "settled"), "is_last": False, "elapsed_ms": 500.0,
    }  # fmt: skip
    return StepEvent(**{**values, **changes})


def drawn(renderable, width=100):
    console = Console(file=io.StringIO(), width=width)
    console.print(renderable)
    return console.file.getvalue()


def test_the_lines_are_typed_and_complete(trace, capsys):
    records = [json.loads(line) for line in trace.read_text().splitlines()]
    assert list(trace.parent.iterdir()) == [trace]
    for index in range(3):
        own = [record for record in records if record["index"] == index]
        assert [record["type"] for record in own] == ["header", *["step"] * 3, *["token"] * 6, "result"]
        assert own[0]["settings"]["seed"] == 4 and own[0]["prompt"] == {"text": ("one", "two", "three")[index]}
        assert own[7]["first_set"] == 2 and own[7]["last_changed"] == 2
        assert own[7]["confidence"] == [0.3, 0.3, 0.3] and own[9]["confidence"] == [None] * 3
        assert own[-1]["text"] == "The capital is Paris"
        pieces = {}
        for record in own[1:4]:
            assert not pieces.keys() & record["pieces"].keys()
            pieces.update(record["pieces"])
        assert pieces == {str(token): PIECES[token] for token in (0, 1, 2, 3, 4, 5, 6)}


def test_a_trace_reads_back_as_the_same_events(trace):
    sequences = read_trace(trace)
    original = [item for item in FakeEngine().stream(["a"]) if isinstance(item, StepEvent)]
    assert len(sequences) == 3
    for got, expected in zip(sequences[0].events, original, strict=True):
        assert (got.token_ids, got.predicted_ids, got.status, got.text) == (
            expected.token_ids,
            expected.predicted_ids,
            expected.status,
            expected.text,
        )
        assert got.confidences[:5] == expected.confidences[:5]
    assert painter_of(sequences).canvas(original[-1]) == painter().canvas(original[-1])


def test_replay_keeps_the_recorded_times(trace):
    pauses = []
    events = list(played(read_trace(trace)[:1], speed=2.0, sleep=pauses.append))
    assert [item.step for item in events] == [0, 1, 2]
    assert pauses == pytest.approx([0.05, 0.05, 0.05])


def test_replay_prints_the_answer_or_draws_it_again(trace, capsys):
    assert generate.main(["--replay", str(trace)]) == 0
    assert capsys.readouterr() == ("The capital is Paris\n---\nThe capital is Paris\n---\nThe capital is Paris\n", "")
    assert generate.main(["--replay", str(trace), "--json"]) == 0
    assert {json.loads(line)["seed"] for line in capsys.readouterr().out.splitlines()} == {4}
    out, err = (Console(file=io.StringIO(), force_terminal=True, width=100, height=30) for _ in range(2))
    assert generate.run(parse(["--replay", str(trace), "--replay-speed", "1000"]), out, err) == 0
    assert "░░░" in out.file.getvalue() and out.file.getvalue().endswith("The capital is Paris\n")


def test_a_cut_off_or_foreign_file_is_refused(trace, tmp_path, capsys):
    lines = trace.read_text().splitlines()
    for content, message in (
        ("\n".join(lines)[: len(lines[0]) + 30], "line 2 is no trace record"),
        (lines[0], "holds no steps"),
        (lines[0].replace('"version": 1', '"version": 9'), "line 1 is no trace record (format lad-trace 9"),
        ("[]", "line 1 is no trace record"),
        (lines[0].replace('"prompt":', '"said":'), "line 1 is no trace record ('prompt')"),
        (lines[0].replace('"index": 0', '"index": "one"'), "line 1 is no trace record (index is 'one')"),
        ("\n".join(lines).replace('"elapsed_ms": ', '"elapsed_ms": "soon", "at": '), "is no trace record (elapsed_ms is 'soon')"),
        ("\n".join(lines).replace('"timings":', '"times":'), "is no trace record ('timings')"),
        ("", "holds no steps"),
    ):
        (tmp_path / "other").write_text(content)
        assert generate.main(["--replay", str(tmp_path / "other")]) == 2
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1


def test_statuses_and_confidences_are_told_apart():
    states = ("masked", "new", "changed", "settled", "fixed")
    text = painter().canvas(event(token_ids=(MASK, 2, 3, 4, 5), confidences=(0.0, 0.0, 0.5, 1.0, 1.0), status=states))
    styles = [span.style for span in text.spans]
    assert text.plain == "░░░The capital is Paris"
    assert len({str(style) for style in styles}) == 5
    assert [style.color.name for style in styles[1:4]] == ["rgb(220,0,60)", "rgb(220,200,60)", "rgb(20,200,60)"]
    assert confidence_style(float("nan")) == confidence_style(-1) == confidence_style(0)


def test_the_run_of_end_tokens_is_one_sign_and_newlines_are_seen():
    text = painter().canvas(event(token_ids=(2, 7, END, END), status=("settled",) * 4))
    assert text.plain == "The↵\n ⏹ ×2"
    assert painter().canvas(event(token_ids=(2, 7, END, END), status=("settled",) * 4), one_line=True).plain == "The↵ ⏹ ×2"
    blank = painter().canvas(event(token_ids=(7, 7, 7, 2, 7), confidences=(1.0,) * 5, status=("new",) * 5))
    assert blank.plain == "↵\n↵↵The↵\n"
    fixed_end = painter().canvas(event(token_ids=(2, 3, END), status=("new", "new", "fixed")))
    assert fixed_end.plain == "The capital⏹"


def test_control_characters_never_reach_the_terminal():
    assert printable("a\x1b[2Jb\x07\x9b\n\té") == "a\ufffd[2Jb\ufffd\ufffd\n\té"
    assert "\x1b" not in painter().canvas(event(token_ids=(8,), status=("new",), confidences=(1.0,))).plain


def test_the_counter_and_the_speed_count_visible_tokens():
    header = drawn(painter().header(event()))
    assert "step 1/4" in header and "2 of 4 tokens" in header and "4.0 tokens/s" in header
    assert "0.0 tokens/s" in drawn(painter().header(event(elapsed_ms=0.0)))


def test_several_canvases_share_the_screen_one_line_each():
    console = Console(file=io.StringIO(), width=60, force_terminal=True)
    view = LiveView(console, painter(), ["first question", "second\nquestion"])
    with view:
        for index in range(2):
            view.update(event(index=index))
        lines = drawn(view.picture(), 60).splitlines()
    assert lines[0].startswith("first question") and "1/4" in lines[0] and "The" in lines[0]
    assert len(lines) <= 5


def test_a_bar_appears_only_after_a_while_and_only_on_a_terminal():
    for is_terminal, patience_s, shown in ((True, 0.0, True), (True, 60.0, False), (False, 0.0, False)):
        console = Console(file=io.StringIO(), force_terminal=is_terminal, width=80)
        with LoadProgress(console, patience_s=patience_s) as progress:
            if progress._timer is not None and patience_s == 0:
                progress._timer.join()
            progress.update("downloading the base", 30, 100)
            progress.update("downloading the base", 60, 100)
        assert ("downloading" in console.file.getvalue()) is shown
