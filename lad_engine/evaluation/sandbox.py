"""Run a program that a model wrote: its own process, without network, with little time and memory, and without leave to write or fork."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile

from ..errors import ConfigError

MEMORY_BYTES = 1 << 30
# The child limits itself before it reads the program: an audit hook cannot be taken off again.
_CHILD = """
import os, resource, sys
seconds, memory = int(sys.argv[1]), int(sys.argv[2])
# What the program prints is dropped; its end is told on a copy of the pipe.
answer = os.dup(1)
nothing = os.open(os.devnull, os.O_WRONLY)
os.dup2(nothing, 1)
os.close(nothing)
for name, most in (("CPU", seconds), ("AS", memory), ("FSIZE", 0), ("CORE", 0), ("NOFILE", 64), ("NPROC", 64)):
    resource.setrlimit(getattr(resource, "RLIMIT_" + name), (most, most))
word, _, source = sys.stdin.buffer.read().partition(b"\\n")
code = compile(source, "<program>", "exec")
FORBIDDEN = ("socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "os.spawn", "os.startfile",
             "os.kill", "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.chmod", "os.chown", "os.truncate",
             "shutil.", "ctypes.", "pty.", "signal.pthread_kill", "webbrowser.", "urllib.", "http.", "ftplib.", "smtplib.")
def guard(event, arguments):
    if event.startswith(FORBIDDEN):
        raise PermissionError(event + " is not allowed here")
    if event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        raise PermissionError("writing files is not allowed here")
sys.addaudithook(guard)
try:
    exec(code, {"__name__": "__main__"})
except BaseException:
    sys.exit(1)
os.write(answer, word)
os._exit(0)
"""


def check_allowed(is_allowed: bool) -> None:
    """Raise ConfigError where programs may not be run: the caller did not ask for it, or the system cannot limit them."""
    if not is_allowed:
        raise ConfigError(
            "humaneval: it runs programs that a model wrote and --allow-code-execution is not given, expected it. "
            "Give it, or leave the task out."
        )
    if os.name != "posix":
        raise ConfigError(f"humaneval: this system is {os.name}, expected one with resource limits (Linux, macOS). Leave the task out.")
    if not passes("pass"):
        # Otherwise every answer would count as wrong: some systems refuse a limit that the child sets itself.
        raise ConfigError("humaneval: an empty program fails in the sandbox here, expected it to pass. Leave the task out.")


def network_cut() -> list[str]:
    """Return the words in front of a command that take its network away, none where the system does not let us (the audit hook remains)."""
    if shutil.which("unshare") is None:
        return []
    words = ["unshare", "--user", "--map-root-user", "--net"]
    done = subprocess.run([*words, "true"], capture_output=True, timeout=10, check=False)
    return words if done.returncode == 0 else []


def passes(program: str, seconds: int = 10, cut: list[str] | None = None) -> bool:
    """Return whether a program runs to its last line, in time, without an error; leaving early is failing.

    Args:
        program: Python source. seconds: of CPU time; half as many again of wall time plus two to start. cut: see `network_cut`.
    """
    command = [*(network_cut() if cut is None else cut), sys.executable, "-I", "-S", "-c", _CHILD, str(seconds), str(MEMORY_BYTES)]
    # Said back behind the last line: no status that a program can leave with means that it passed.
    word = secrets.token_hex(16).encode()
    with tempfile.TemporaryDirectory() as folder:
        child = subprocess.Popen(
            command,
            cwd=folder,
            env={"PATH": os.defpath},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            said, _ = child.communicate(word + b"\n" + program.encode("utf-8", "replace"), timeout=seconds * 1.5 + 2)
        except subprocess.TimeoutExpired:
            return False
        finally:
            # Whatever it left running belongs to its session.
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
    return said == word and child.returncode == 0
