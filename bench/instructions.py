"""How many instructions each C++ kernel of the CPU takes at a small fixed size: a guard that does not depend on how busy a machine is.

python -m bench.instructions --check      # compare with the committed counts; exit status 1 where one grew by more than 30 %
python -m bench.instructions              # count anew, and store what a change is compared with
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.results import REPOSITORY, RESULTS, check_result, make_result, write_result

COUNTED = (
    "Instructions of one binding call and everything below it, counted by valgrind's callgrind, which has no AVX-512: the next lower "
    "level runs. Sizes: bench/instruction_calls.py."
)
BASELINE = RESULTS / "cpu_instructions.json"
# Compilers differ by less; what this is to catch, a lost vector loop or a copy too many, costs more.
MOST_GROWTH = 1.3
_CALL = re.compile(r"^\s*([\d,]+) .*:lad::\(anonymous namespace\)::(?:BoundScan::)?(\w+)\(pybind11::object const&")
# Functions of the bindings by the op they are; other ones have their op's name and "_of".
_NAMES = {"choose": "choose_token", "noise": "gaussian_noise"}


def missing() -> str:
    """Return why nothing can be counted here, "" where it can."""
    for tool in ("valgrind", "callgrind_annotate"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed"
    try:
        importlib.import_module("lad_engine._cpu")
    except ImportError as error:
        return f"the C++ extension is not built ({error})"
    return ""


def count() -> tuple[dict[str, int], int]:
    """Return the instructions of each op, and the instruction level that ran."""
    extension = importlib.import_module("lad_engine._cpu").__file__
    calls = [sys.executable, "-S", str(REPOSITORY / "bench" / "instruction_calls.py"), extension]
    with TemporaryDirectory() as folder:
        out = Path(folder) / "callgrind.out"
        done = _run(["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", *calls])
        annotated = _run(["callgrind_annotate", "--inclusive=yes", "--threshold=100", str(out)])
    return counts_in(annotated.splitlines()), int(done)


def counts_in(lines: Iterable[str]) -> dict[str, int]:
    """Return op -> instructions from callgrind_annotate's inclusive list."""
    out: dict[str, int] = {}
    for line in lines:
        found = _CALL.match(line)
        if found is None:
            continue
        function = found[2]
        if function in _NAMES or function.endswith("_of"):
            name = _NAMES.get(function, function.removesuffix("_of"))
            out[name] = max(out.get(name, 0), int(found[1].replace(",", "")))
    return out


def grown(before: Mapping[str, int], now: Mapping[str, int]) -> list[str]:
    """Return one line for each op that takes MOST_GROWTH times its former instructions, or is not counted any more."""
    lines = [f"{name}: not counted, {before[name]:,} before" for name in sorted(before.keys() - now.keys())]
    for name in sorted(before.keys() & now.keys()):
        if now[name] > before[name] * MOST_GROWTH:
            lines.append(f"{name}: {now[name]:,} instructions, {before[name]:,} before ({now[name] / before[name]:.2f} x)")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="store nothing; exit with 1 where a kernel takes many more instructions")
    parser.add_argument("--out", type=Path, default=BASELINE, help="the counts to store, or to compare with")
    options = parser.parse_args()
    why = missing()
    if why:
        print(f"instructions: skipped, {why}.")
        return
    now, level = count()
    for name, instructions in sorted(now.items()):
        print(f"{name:<18} {instructions:>12,}", flush=True)
    if not options.check:
        rows = [{"op": name, "instructions": instructions} for name, instructions in sorted(now.items())]
        write_result(options.out, make_result("instructions", COUNTED, rows, level=level))
        return
    stored = json.loads(options.out.read_text(encoding="utf-8"))
    check_result(stored)
    if stored["level"] != level:
        print(f"instructions: not compared, the level that ran is {level} and the stored one {stored['level']}.")
        return
    lines = grown({row["op"]: row["instructions"] for row in stored["rows"]}, now)
    if lines:
        sys.exit("\n".join(lines))
    print(f"instructions: none grew by more than {MOST_GROWTH - 1:.0%}.")


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{command[0]}: {done.stderr.strip()[-500:]}")
    return done.stdout


if __name__ == "__main__":
    main()
