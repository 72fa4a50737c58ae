"""llama.cpp takes part where its package is installed, and one line says so where it is not; a stand-in plays the package here."""

from __future__ import annotations

import sys
import types

import pytest
from bench_on_path import ROOT  # noqa: F401 - its import is its effect

import bench.gguf_peer
from bench.gguf_peer import gguf_row
from bench.results import make_result


class StandIn:
    """Answers every question with three pieces of text, as llama-cpp-python streams them."""

    made: tuple = ()

    def __init__(self, **settings):
        StandIn.made = settings
        self.resets = 0

    def reset(self):
        self.resets += 1

    def create_chat_completion(self, messages, max_tokens, stream, **_):
        assert self.resets and stream and messages[0]["role"] == "user"
        yield {"choices": [{"delta": {"role": "assistant"}, "finish_reason": None}]}
        for piece in ("One", " two", ".")[:max_tokens]:
            yield {"choices": [{"delta": {"content": piece}, "finish_reason": None}]}
        yield {"choices": [{"delta": {}, "finish_reason": "stop"}]}


def test_answers_are_counted_up_to_eos(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "llama_cpp", types.SimpleNamespace(Llama=StandIn, __version__="0.3"))
    row = gguf_row(tmp_path / "Some-Model.Q4_1.gguf", ("a?", "b?"), 64, 2)
    assert (row["model"], row["dtype"], row["tokens"]) == ("Some-Model.Q4_1", "Q4_1", 3)
    assert StandIn.made["model_path"].endswith("Some-Model.Q4_1.gguf") and StandIn.made["n_threads"] >= 1
    timing = row["times"]["llama.cpp 0.3"]
    assert row["tokens_before_eos_per_s"] == pytest.approx(3 / timing["median_us"] * 1e6)
    assert 0 < row["first_text_us"] <= timing["max_us"]
    make_result("decode", "everything", [row])


def test_without_the_package_or_the_file_one_line_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    assert gguf_row(None, ("a?",), 8, 1).startswith("llama.cpp: skipped, llama-cpp-python cannot be imported")
    monkeypatch.setitem(sys.modules, "llama_cpp", types.SimpleNamespace(Llama=StandIn))
    monkeypatch.setattr(bench.gguf_peer, "installed_gguf", lambda: None)
    assert "is not installed" in gguf_row(None, ("a?",), 8, 1)
