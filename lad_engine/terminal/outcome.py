"""How a command ends that could not finish: one sentence on standard error, and the exit code."""

from __future__ import annotations

import os
import sys

from ..errors import LadError

MISTAKE, INTERRUPTED, BROKEN_PIPE = 2, 130, 141
# What the caller or the machine can cause: a wrong request, a file or disk that fails, too little memory.
FAILURES = (LadError, OSError, MemoryError)


def refused(error: LadError | OSError | MemoryError) -> int:
    """Print `error` as one sentence and return the exit code: 2, or 141 where the reader of standard output went away."""
    if isinstance(error, BrokenPipeError):
        _forget_output()
        return BROKEN_PIPE
    if isinstance(error, OSError):
        _forget_output()
    print(f"error: {' '.join(_sentence(error).split())}", file=sys.stderr)
    return MISTAKE


def _sentence(error: LadError | OSError | MemoryError) -> str:
    if isinstance(error, OSError):
        where = "output" if error.filename is None else error.filename
        reason = error.strerror or error
        return f"{where}: cannot be used ({reason}), expected a place to read and write. Check the path, its permissions and free space."
    if isinstance(error, MemoryError):
        return f"memory: there is too little ({error or 'none is left'}), expected more. Ask for fewer tokens, steps or prompts at once."
    return str(error)


def _forget_output() -> None:
    """Send what is still buffered nowhere where it cannot be written: Python would complain once more when it closes standard output."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
