"""The command line: what it prints, what it refuses, and what it leaves behind."""

import dataclasses
import io
import json
import logging
import os
import subprocess
import sys
import warnings

import pytest
from fake_engine import FakeEngine
from rich.console import Console

from lad_engine import generate
from lad_engine.config import ALIASES, SamplingParams
from lad_engine.errors import AdapterError, LadError
from lad_engine.terminal.arguments import SAMPLING_HELP, parse, sampling_settings

JSON_FIELDS = {
    "text": str,
    "token_ids": list,
    "confidences": list,
    "nfe": int,
    "tpf": float,
    "steps": int,
    "stopped_early": bool,
    "finish_reason": str,
    "timings": dict,
    "model": str,
    "adapter": str,
    "profile": str,
    "seed": int,
    "dtype": str,
    "precision": str,
    "device": str,
    "ops": dict,
}
ANSWER = "The capital is Paris"


def run(*argv, engine=None):
    return generate.main([*map(str, argv)], load=(engine or FakeEngine()).load)


def on_a_terminal(*argv, engine=None):
    """Run with both streams as terminals; return what was printed on each."""
    out, err = (Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", width=100, height=30) for _ in range(2))
    code = generate.run(parse([*map(str, argv)]), out, err, (engine or FakeEngine()).load)
    assert code == 0
    return out.file.getvalue(), err.file.getvalue()


def test_piped_it_prints_only_the_answer(capsys):
    assert run("What?") == 0
    assert capsys.readouterr() == (ANSWER + "\n", "")


def test_json_is_one_object_with_the_promised_fields(capsys):
    assert run("What?", "--json", "--seed", 7) == 0
    out, err = capsys.readouterr()
    record = json.loads(out)
    assert err == "" and out.count("\n") == 1
    assert {name: type(value) for name, value in record.items()} == JSON_FIELDS
    assert set(record["timings"]) == {"load_ms", "first_step_ms", "total_ms"}
    assert record["seed"] == 7 and record["confidences"][-1] is None


def test_on_a_terminal_the_canvas_is_drawn_and_then_only_the_answer_stays():
    out, err = on_a_terminal("What?")
    assert "\x1b[" in out and "░░░" in out and "step 3/3" in out and "masked" in out
    assert out.endswith(ANSWER + "\n")
    assert "3 steps" in err and "4 tokens" in err and "tokens/s" in err


def test_show_steps_prints_one_line_a_step_beside_a_piped_answer(capsys):
    assert run("What?", "--show-steps") == 0
    out, err = capsys.readouterr()
    assert out == ANSWER + "\n"
    assert [line.split("  ")[0] for line in err.splitlines()] == ["step 1/3", "step 2/3", "step 3/3"]
    assert "The ░░░ is ░░░" in err
    shown, _ = on_a_terminal("What?", "--show-steps")
    assert shown.count("step ") == 3 and shown.endswith(ANSWER + "\n")


def test_a_batch_is_decoded_in_parts_and_its_answers_are_kept_apart(tmp_path, capsys):
    file = tmp_path / "prompts.txt"
    file.write_text("one\n\ntwo\r\nthree\n")
    engine = FakeEngine()
    assert run("--prompts", file, "--batch-size", 2, engine=engine) == 0
    assert [[prompt.text for prompt in batch] for batch in engine.batches] == [["one", "two"], ["three"]]
    assert capsys.readouterr().out == f"{ANSWER}\n---\n{ANSWER}\n---\n{ANSWER}\n"
    assert run("--prompts", file, "--json") == 0
    assert len([json.loads(line) for line in capsys.readouterr().out.splitlines()]) == 3
    out, _ = on_a_terminal("--prompts", file)
    assert out.count(ANSWER) == 3


def test_json_lines_give_whole_prompts(tmp_path):
    file = tmp_path / "prompts"
    lines = [{"prompt": "a", "system": "own"}, {"messages": [{"role": "user", "content": "b\u2028c"}]}, {"text": "c", "infill": "x [[2]]"}]
    file.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines))
    engine = FakeEngine()
    assert run("--prompts", file, "--system", "shared", engine=engine) == 0
    prompts = engine.batches[0]
    assert [prompt.system for prompt in prompts] == ["own", "shared", "shared"]
    assert prompts[1].messages[0]["content"] == "b\u2028c" and prompts[2].infill == "x [[2]]"


def test_standard_input_is_a_prompt_or_a_batch(monkeypatch):
    for argv, given, expected in (("-",), b"two\nlines\n", ["two\nlines"]), (("--prompts", "-"), b"two\nlines\n", ["two", "lines"]):
        engine = FakeEngine()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))
        assert run(*argv, engine=engine) == 0
        assert [prompt.text for prompt in engine.batches[0]] == expected


def test_every_sampling_field_and_alias_is_a_flag():
    fields = {field.name for field in dataclasses.fields(SamplingParams)} - {"profile"}
    assert set(SAMPLING_HELP) == fields
    values = {
        "suppress_tokens": ((3, 5), "3,5"), "stop": (["x"], "x"), "noise_schedule": ("linear", "linear"), "remasking": ("none", "none"),
        "retention": ("locked", "locked"), "top_p_rule": ("drop_crossing", "drop_crossing"), "selection": ("random", "random"),
        "confidence": ("kept", "kept"), "eos_treatment": ("forbid", "forbid"), "reveal": ("entropy", "entropy"), "time_floor": (0.5, "0.5"),
        "solver": ("rk4", "rk4"), "flow_estimate": ("average", "average"), "transition": ("ddim", "ddim"),
        "reward_rule": ("reference", "reference"),
    }  # fmt: skip
    for field in dataclasses.fields(SamplingParams):
        flag = f"--{field.name.replace('_', '-')}"
        if field.name == "profile":
            continue
        if field.type == "bool":
            assert sampling_settings(parse(["a", flag])) == {field.name: True}
            assert sampling_settings(parse(["a", flag.replace("--", "--no-", 1)])) == {field.name: False}
            continue
        expected, text = values.get(field.name, (1, "1"))
        assert sampling_settings(parse(["a", flag, text])) == {field.name: expected}
    for alias, canonical in ALIASES.items():
        assert sampling_settings(parse(["a", f"--{alias.replace('_', '-')}", "1"])) == {canonical: 1}
    assert sampling_settings(parse(["a", "--block-length", "none", "--stop", "x", "--stop", "y"])) == {
        "block_length": None,
        "stop": ["x", "y"],
    }
    assert sampling_settings(parse(["a"])) == {}


def test_engine_flags_reach_the_engine():
    engine = FakeEngine()
    flags = "--model m --adapter none --device cpu --dtype bfloat16 --ops attention=reference --threads 2 --no-merge"
    flags += " --no-batch-invariant --mask-token M --driver replay"
    assert run("a", *flags.split(), engine=engine) == 0
    config = engine.load_arguments["config"]
    assert (engine.load_arguments["model"], engine.load_arguments["adapter"]) == ("m", None)
    assert dataclasses.asdict(config) | {"merge": False} == dataclasses.asdict(config)
    assert (config.device, config.dtype, config.ops, config.threads) == ("cpu", "bfloat16", "attention=reference", 2)
    assert config.batch_invariant is False and config.mask_token == "M" and config.driver == "replay"
    run("a", engine=engine)
    assert engine.load_arguments["adapter"] == "default" and engine.load_arguments["config"].batch_invariant is None


def test_verbose_and_the_drift_report_go_to_stderr(capsys):
    assert run("a", "--verbose", "--drift-report") == 0
    out, err = capsys.readouterr()
    assert out == ANSWER + "\n"
    assert "renoise  cpu  best on cpu" in err and "drift: 0.001" in err and "adapter  ours" in err
    assert "driver   replay" in err and "memory of a batch of 1" in err
    assert run("--drift-report") == 0
    assert capsys.readouterr().out == ""


def test_our_warnings_become_notes_and_nothing_stays_changed(capsys, monkeypatch):
    before = (logging.getLogger("lad_engine").handlers[:], logging.getLogger("lad_engine").propagate, dict(os.environ), warnings.filters[:])

    def noisy(*_, **given):
        warnings.warn("a library is chatty", stacklevel=1)
        logging.getLogger("transformers").warning("so is this one")
        logging.getLogger("lad_engine.ops").warning("renoise runs in plain PyTorch: no extension")
        return FakeEngine().load(**given)

    assert generate.main(["a"], load=noisy) == 0
    assert capsys.readouterr() == (ANSWER + "\n", "note: renoise runs in plain PyTorch: no extension\n")
    after = (logging.getLogger("lad_engine").handlers[:], logging.getLogger("lad_engine").propagate, dict(os.environ), warnings.filters[:])
    assert before == after


def test_profiles_are_listed_without_loading(capsys):
    assert generate.main(["--list-profiles"], load=None) == 0
    out = capsys.readouterr().out
    assert all(f"\n{name}: " in "\n" + out for name in ("paper", "space", "retain", "llada"))
    assert "--noise-start 0.5" in out and "--no-eos-split" in out and max(map(len, out.splitlines())) <= 120


REFUSED = {
    "unknown flag": (["a", "--stpes", "3"], "--stpes is not an option. Did you mean --steps or"),
    "two prompts": (["a", "b"], "'b' is a second prompt"),
    "no prompt": ([], "PROMPT is missing"),
    "empty prompt": (["  "], "the text is empty"),
    "negative steps": (["a", "--steps", "-3"], "steps is -3, expected an integer of at least 1"),
    "steps that are no number": (["a", "--steps", "many"], "'many' is not a whole number"),
    "flag without value": (["a", "--seed"], "expected one argument"),
    "temperature below zero": (["a", "--temperature", "-1"], "temperature is -1.0"),
    "nan": (["a", "--top-p", "nan"], "top_p is nan"),
    "unknown choice": (["a", "--remasking", "some"], "remasking is 'some', expected one of none, random"),
    "unknown profile": (["a", "--profile", "papr"], "papr"),
    "unknown format": (["a", "--format", "chatml"], "expected one of chat, space, raw"),
    "blocks without transfer": (
        ["a", "--profile", "paper", "--block-length", "4"],
        "block_length is 4, expected it only with",
    ),
    "unknown dtype": (["a", "--dtype", "int3"], "dtype is 'int3'"),
    "missing file": (["--prompts", "TMP/none"], "cannot be read (No such file or directory)"),
    "a folder": (["--prompts", "TMP"], "is a folder, expected a file"),
    "an empty file": (["--prompts", "TMP/empty"], "holds no prompt"),
    "not UTF-8": (["--prompts", "TMP/bytes"], "byte 1 is not UTF-8"),
    "broken JSON lines": (["--prompts", "TMP/broken"], "line 2: it is not JSON"),
    "a JSON line of another kind": (["--prompts", "TMP/list"], "line 2: it is a JSON list"),
    "an unknown JSON field": (["--prompts", "TMP/field"], "line 1: prompt: 'pormpt' is not a field of a prompt. Did you mean prompt or"),
    "prompt and file": (["a", "--prompts", "TMP/empty"], "both given"),
    "draft for a file": (["--prompts", "TMP/empty", "--draft", "x"], "--draft is given with --prompts"),
    "draft and infill": (["a", "--draft", "x", "--infill", "[[2]]"], "draft and infill are both given"),
    "batch of none": (["a", "--batch-size", "0"], "batch-size is 0"),
    "trace into a folder": (["a", "--trace", "TMP"], "is a folder"),
    "trace into nowhere": (["a", "--trace", "TMP/no/trace"], "does not exist"),
    "replay of nothing": (["--replay", "TMP/none"], "cannot be read"),
    "replay of something else": (["--replay", "TMP/broken"], "line 1 is no trace record"),
    "replay of a new prompt": (["a", "--replay", "TMP/broken"], "--replay plays what was recorded"),
    "a name too long for a file": (["--prompts", "x" * 300], "cannot be used (File name too long), expected a place to read and write"),
    "a trace too long for a file": (["a", "--trace", "x" * 300], "File name too long"),
    "trace over a device": (["a", "--trace", os.devnull], "is no regular file"),
    "more steps than a table holds": (["a", "--steps", str(10**12)], "steps is 1000000000000, expected an integer of at most 65536"),
    "more candidates than a number holds": (["a", "--top-k", str(10**20)], "expected an integer of at most 2147483647"),
    "a line of brackets": (["--prompts", "TMP/deep"], "line 2: it is not JSON"),
    "replay of brackets": (["--replay", "TMP/brackets"], "line 1 is no trace record"),
    "replay at no speed": (["--replay", "TMP/broken", "--replay-speed", "nan"], "replay-speed is nan"),
    "replay backwards": (["--replay", "TMP/broken", "--replay-speed", "-1"], "replay-speed is -1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_caller_got_wrong_is_one_sentence_and_exit_code_2(case, tmp_path, capsys):
    argv, message = REFUSED[case]
    files = {
        "empty": b"\n \n", "bytes": b"a\xff", "broken": b'{"prompt": "a"}\n{"prompt": \n', "list": b'{"prompt": "a"}\n["b"]\n',
        "field": b'{"pormpt": "a"}\n', "deep": b'{"prompt": "a"}\n' + b"[" * 100_000,
        "brackets": b"[" * 100_000,
    }  # fmt: skip
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)

    def never(*_, **__):
        raise AssertionError("the model is loaded for a request that is refused")

    code = generate.main([word.replace("TMP", str(tmp_path)) for word in argv], load=FakeEngine().load if "dtype" in case else never)
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(files)


@pytest.mark.parametrize("failure", [AdapterError("adapter: it\n does not fit."), LadError("x")])
def test_errors_of_the_engine_end_in_one_line(failure, capsys, tmp_path):
    assert run("a", "--trace", tmp_path / "trace", engine=FakeEngine(fails=failure, after=1)) == 2
    assert capsys.readouterr().err == f"error: {' '.join(str(failure).split())}\n"
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_leaves_nothing_and_exits_with_130(capsys, tmp_path):
    assert run("a", "--trace", tmp_path / "trace", engine=FakeEngine(fails=KeyboardInterrupt(), after=2)) == 130
    assert list(tmp_path.iterdir()) == [] and "Traceback" not in capsys.readouterr().err


def test_too_little_memory_is_one_sentence(capsys):
    assert run("a", engine=FakeEngine(fails=MemoryError("9 TiB"), after=1)) == 2
    assert capsys.readouterr().err.startswith("error: memory: there is too little (9 TiB)")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_a_full_disk_is_one_sentence_and_nothing_more_at_the_end():
    with open("/dev/full", "w") as full:
        words = [sys.executable, "-m", "lad_engine.generate", "--list-profiles"]
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: output: cannot be used (No space left on device)")


def test_what_utf8_cannot_hold_goes_through_a_trace(tmp_path, capsys):
    assert run("a", "--stop", "\udcff", "--trace", tmp_path / "trace") == 0
    header = json.loads((tmp_path / "trace").read_text(encoding="utf-8").splitlines()[0])
    assert header["settings"]["stop"] == ["\udcff"]
    assert generate.main(["--replay", str(tmp_path / "trace")]) == 0


def test_help_imports_neither_torch_nor_transformers():
    code = (
        "import sys, lad_engine.generate as g\n"
        "try: g.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n") and "--noise-start" in done.stdout and "--num-inference-steps" in done.stdout


def test_a_reader_that_goes_away_is_no_error():
    # `--list-profiles` writes more than `head -c 1` reads; the pipe is closed before the answer is out.
    code = (
        "import os, sys, lad_engine.generate as g\n"
        "r, w = os.pipe(); os.close(r); os.dup2(w, 1)\n"
        "sys.stdout = os.fdopen(1, 'w', buffering=1)\n"
        "sys.exit(g.main(['--list-profiles']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (141, "")
