"""Every op x backend x shape against its roof on this machine and against the library call that does the same work.

python -m bench.ops --models Llama-3.2-1B --out bench/results/ops_<device>.json
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

import torch

from bench.op_cases import Case, Setting, op_cases, op_flops
from bench.op_peers import op_peers
from bench.random_model import MODELS
from bench.results import REPOSITORY, RESULTS, device_slug, make_result, store, write_result
from bench.roofs import Roofs, measure_roofs
from bench.timing import call_us, release, rotating, stop_if_lost
from lad_engine.kernels.op import Op
from lad_engine.ops import OP_NAMES, PREFERRED, load_op

COUNTED = "One call with preallocated inputs; on a GPU the median over graph replays with inputs rotated past the cache. Parity runs first."
# Reference backends of whole-model shapes are slow and nobody's choice; they are timed up to this many bytes on a CPU.
SHAPES = {"cuda": ((1, 256), (1, 512), (8, 512)), "cpu": ((1, 256),)}
QUICK_SHAPES = ((1, 32),)


def backends_of(name: str, device: str) -> list[str]:
    """Return the backends of an op that this device runs, reference first."""
    kind = torch.device(device).type
    return ["reference", *(b for b in load_op(name).backends if b in PREFERRED.get(kind, ()))]


def measure_op(name: str, at: Setting, roofs: Roofs, times: dict[str, int], checks: bool) -> list[dict]:
    """Return one row per case: every backend and peer, the floor and how near each comes to it."""
    op, rows = load_op(name), []
    for label, case in op_cases(name, at).items():
        moved, flops = op.bytes_moved(**case), op_flops(name, case)
        dtype = str(at.dtype).removeprefix("torch.")
        floor = roofs.floor_us(moved, flops, dtype)
        measured, refused = {}, {}
        inputs = rotating(case, moved, at.device)
        for backend in backends_of(name, at.device):
            try:
                run = op.implementation(backend)
                if checks and backend != "reference":
                    _check(op, backend, case)
                measured[backend] = call_us([lambda run=run, one=one: run(**one) for one in inputs], at.device, **times)
            except Exception as error:  # noqa: BLE001 - Triton's compiler raises classes of its own, and the rest is to be timed
                refused[backend] = f"{type(error).__name__}: {error}"[:300]
                stop_if_lost(f"{name}={backend}")
        for peer in op_peers(name, case):
            try:
                runs = [op_peers(name, one)[peer] for one in inputs]
                measured[f"peer: {peer}"] = call_us(runs, at.device, **times)
            except RuntimeError as error:
                refused[f"peer: {peer}"] = str(error)[:300]
                stop_if_lost(f"{name}, {peer}")
        share = {who: floor / timing["median_us"] for who, timing in measured.items()}
        setting = {"model": at.facts.name, "dtype": dtype, "batch": at.batch, "canvas": at.canvas, "answer_rows": at.answer_rows}
        own = {"op": name, "case": label, "bytes": moved, "flops": flops, "floor_us": floor, "share_of_roof": share}
        rows.append({**setting, **own, "times": measured, "refused": refused, **_against_peer(measured)})
        print(_line(rows[-1]), flush=True)
    return rows


def _against_peer(measured: dict) -> dict:
    """Return the best backend and the best peer, and how many times faster ours is, where there are both."""
    ours = {who: timing["median_us"] for who, timing in measured.items() if not who.startswith("peer: ") and who != "reference"}
    peers = {who: timing["median_us"] for who, timing in measured.items() if who.startswith("peer: ")}
    if not ours or not peers:
        return {}
    best, peer = min(ours, key=ours.__getitem__), min(peers, key=peers.__getitem__)
    return {"best_backend": best, "best_peer": peer.removeprefix("peer: "), "peer_over_ours": peers[peer] / ours[best]}


def _check(op: Op, backend: str, case: Case) -> None:
    """Red parity, no numbers: the tests' own tolerance rule."""
    path = REPOSITORY / "tests" / "parity.py"
    spec = importlib.util.spec_from_file_location("lad_bench_parity", path)
    module = sys.modules.get(spec.name)
    if module is None:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[spec.name] = module
    module.assert_parity(f"{op.name}={backend}", op.implementation(backend), op.reference, case, exact=op.is_exact, writes=op.writes)


def _line(row: dict) -> str:
    times = "  ".join(f"{who} {timing['median_us']:.1f}" for who, timing in row["times"].items())
    refused = f"  refused: {', '.join(row['refused'])}" if row["refused"] else ""
    where = f"{row['op']} {row['case']} {row['model']} B{row['batch']} T{row['canvas']}"
    return f"{where}: floor {row['floor_us']:.1f} us  {times}{refused}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", choices=list(MODELS))
    parser.add_argument("--ops", nargs="+", choices=OP_NAMES, default=OP_NAMES)
    parser.add_argument("--canvas", type=int, nargs="+", help="of the shapes, those of these lengths alone")
    parser.add_argument("--dtype", default=None, choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--no-checks", action="store_true", help="skip parity before timing")
    parser.add_argument("--quick", action="store_true", help="sizes that prove the script and measure nothing")
    parser.add_argument("--out", type=Path, default=RESULTS / f"ops_{device_slug()}.json")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    models = options.models or (
        ["tiny"] if options.quick else ["Llama-3.2-1B", "Llama-3.1-8B", "SmolLM2-135M"] if device == "cuda" else ["SmolLM2-135M"]
    )
    dtype = getattr(torch, options.dtype or ("bfloat16" if device == "cuda" else "float32"))
    times = {"calls": 2, "repeats": 3} if options.quick or device == "cpu" else {"calls": 20, "repeats": 7}
    roofs = measure_roofs(device, (str(dtype).removeprefix("torch."),), options.quick)
    rows: list[dict] = []
    result = {}
    # Shapes outermost: a session cut short has measured every op at the first one.
    shapes = QUICK_SHAPES if options.quick else [shape for shape in SHAPES[device] if shape[1] in (options.canvas or [shape[1]])]
    for batch, canvas in shapes:
        for model in models:
            for name in options.ops:
                at = Setting(MODELS[model], batch, canvas, min(canvas, 256), dtype, device)
                rows += measure_op(name, at, roofs, times, not options.no_checks)
                release()
                result = make_result("ops", COUNTED, rows, roofs=roofs.as_dict(), is_quick=options.quick)
                store(options.out, result)
    write_result(options.out, result)


if __name__ == "__main__":
    main()
