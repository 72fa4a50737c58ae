"""Instruction counts: the calls run without torch, callgrind's list is read, and growth is told from noise between compilers."""

from __future__ import annotations

import subprocess
import sys

import pytest
from bench_on_path import ROOT

import bench.instructions
from bench.instructions import BASELINE, counts_in, grown, missing

cpu = pytest.importorskip("lad_engine._cpu", reason="the C++ extension is not built here")

LISTED = """
 3,793,198 ( 0.36%)  csrc/bindings_random.cpp:lad::(anonymous namespace)::structured_noise_of(pybind11::object const&, long) [_cpu.so]
 3,042,863 ( 0.29%)  csrc/bindings_tokens.cpp:lad::(anonymous namespace)::BoundScan::choose(pybind11::object const&, bool) [_cpu.so]
 1,088,747 ( 0.10%)  ???:lad::(anonymous namespace)::noise(pybind11::object const&, pybind11::object const&) [_cpu.so]
   525,936 ( 0.05%)  csrc/cpu/update.cpp:lad::(anonymous namespace)::Row::remask(lad::UpdateBuffers const&) [_cpu.so]
     9,000 ( 0.00%)  ???:lad::(anonymous namespace)::structured_noise_of(pybind11::object const&, long) [clone .cold] [_cpu.so]
"""


def test_the_calls_need_no_torch_and_reach_every_kernel():
    script = ROOT / "bench" / "instruction_calls.py"
    done = subprocess.run([sys.executable, "-S", str(script), cpu.__file__], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == cpu.force_level(-1)


def test_the_list_is_read_by_op():
    assert counts_in(LISTED.splitlines()) == {"structured_noise": 3793198, "choose_token": 3042863, "gaussian_noise": 1088747}


def test_growth_and_absence_are_told():
    before = {"a": 1000, "b": 1000, "c": 1000}
    assert grown(before, {"a": 1299, "b": 10, "c": 1000, "new": 5}) == []
    (absent, larger) = grown(before, {"a": 1301, "b": 1000})
    assert absent.startswith("c: not counted") and larger.startswith("a: 1,301")


def test_a_machine_without_the_tool_says_so(monkeypatch, capsys):
    monkeypatch.setattr(bench.instructions.shutil, "which", lambda tool: None)
    assert missing() == "valgrind is not installed"
    monkeypatch.setattr(sys, "argv", ["instructions", "--check"])
    bench.instructions.main()
    assert "skipped, valgrind is not installed" in capsys.readouterr().out
    assert BASELINE.exists()
