"""Programs that a model wrote: what they may, what they may not, and that they end."""

from __future__ import annotations

import os
import sys

import pytest

from lad_engine.errors import ConfigError
from lad_engine.evaluation import sandbox
from lad_engine.evaluation.sandbox import check_allowed, network_cut, passes

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs resource limits")


@pytest.mark.parametrize(
    ("program", "is_passed"),
    [
        ("import math, re, collections\nassert math.gcd(4, 6) == 2", True),
        ("assert 1 == 2", False),
        ("syntax error here", False),
        ("import sys\nsys.exit(0)", False),
        ("import os\nos._exit(0)", False),
        ("import os\nos._exit(77)", False),
        ("print('x' * 100000)", True),
        ("import socket\nsocket.create_connection(('127.0.0.1', 9))", False),
        ("import socket\ntry:\n    socket.socket()\nexcept PermissionError:\n    pass\nelse:\n    raise SystemExit", True),
        ("import subprocess, sys\nsubprocess.run([sys.executable, '-c', ''])", False),
        ("import os\nos.system('true')", False),
        ("import os\nos.fork()", False),
        ("import os\nos.mkdir('x')", False),
        ("open('x', 'w')", False),
        ("import ctypes\nctypes.CDLL(None)", False),
    ],
)
def test_a_program_may_compute_and_nothing_else(program, is_passed):
    # The audit hook alone; the namespace around it is tested below.
    assert passes(program, cut=[]) is is_passed


def test_time_and_memory_end():
    assert not passes("while True: pass", seconds=1, cut=[])
    if sys.platform == "linux":
        assert not passes("x = bytearray(3 << 30)", cut=[])


def test_the_network_is_gone_where_the_system_lets_us():
    cut = network_cut()
    if not cut:
        pytest.skip("this system gives no network namespaces to users")
    assert passes("assert 1 + 1 == 2", cut=cut)


def test_nothing_runs_without_leave():
    with pytest.raises(ConfigError, match="--allow-code-execution is not given"):
        check_allowed(False)
    check_allowed(True)


def test_a_sandbox_that_runs_nothing_is_no_measure(monkeypatch):
    monkeypatch.setattr(sandbox, "_CHILD", "raise ValueError('current limit exceeds maximum limit')")
    with pytest.raises(ConfigError, match="an empty program fails in the sandbox here"):
        check_allowed(True)
