"""Run pytest in several processes at once, each with its share of the tests: compiling kernels keeps one core busy, a machine has more.

python -m bench.shards --logs logs -- -m gpu tests/gpu
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

PYTEST = (sys.executable, "-m", "pytest")
MOST = 8
# pytest's exit status where nothing was selected.
NO_TESTS = 5
TOLD = ("FAILED ", "ERROR ")


def collected(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Return (ids of the selected tests, what could not be collected)."""
    # Twice -q would print counts in place of ids.
    rest = [one for one in arguments if one != "-q"]
    done = subprocess.run([*PYTEST, "--collect-only", "-q", *rest], capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    ids = [line for line in lines if "::" in line and not line.startswith(TOLD)]
    broken = [line for line in lines if line.startswith("ERROR ")]
    if not ids and not broken:
        broken = [f"nothing was collected: {(done.stdout + done.stderr).strip()[-2000:]}"]
    return ids, broken


def shares(ids: list[str], count: int) -> list[list[str]]:
    """Deal the tests out one by one: neighbours take about as long."""
    return [own for own in (ids[index::count] for index in range(count)) if own]


def run(arguments: list[str], count: int, logs: Path) -> int:
    """Run the selected tests in up to `count` processes and print what failed; returns an exit status."""
    ids, broken = collected(arguments)
    options = [one for one in arguments if not Path(one.partition("::")[0]).exists()]
    logs.mkdir(parents=True, exist_ok=True)
    print(f"{len(ids)} tests in {min(count, len(ids))} processes", *broken, sep="\n", flush=True)
    processes = []
    for index, own in enumerate(shares(ids, count)):
        log = (logs / f"shard_{index}.log").open("w", encoding="utf-8")
        processes.append((subprocess.Popen([*PYTEST, *options, *own], stdout=log, stderr=subprocess.STDOUT), log))
    for process, log in processes:
        process.wait()
        log.close()
        lines = Path(log.name).read_text(encoding="utf-8").splitlines()
        # The last line is pytest's own summary; a process that died has none, and its last lines say why.
        told = [line for line in lines if line.startswith(TOLD)]
        print(*told, *lines[-1 if told or process.returncode == 0 else -12 :], sep="\n", flush=True)
    return int(bool(broken) or any(process.returncode not in (0, NO_TESTS) for process, _ in processes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shards", type=int, default=min(MOST, max(1, (os.cpu_count() or 1) // 2)))
    parser.add_argument("--logs", type=Path, default=Path(tempfile.gettempdir()) / "lad-engine-shards")
    parser.add_argument("arguments", nargs="*", help="what pytest takes, after --")
    options = parser.parse_args()
    sys.exit(run(options.arguments, options.shards, options.logs))


if __name__ == "__main__":
    main()
