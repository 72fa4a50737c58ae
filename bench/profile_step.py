"""Where the time of one denoising step on a CPU goes: every op of the step by itself, with its share and its rate.

python -m bench.profile_step --out bench/results/cpu_profile.json                # int8 and fp32, one thread; a quiet machine, a minute
python -m bench.profile_step --precisions int8 --clock process                   # a busy machine: only the time this process computed
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import inspect
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bench.decoder import Decoder
from bench.op_cases import op_flops
from bench.random_model import MODELS, step_flops
from bench.results import RESULTS, make_result, store, write_result
from bench.timing import summary
from lad_engine.kernels.op import Op
from lad_engine.ops import OP_NAMES, OpSet, load_op

COUNTED = (
    'One eager denoising step, batch 1, no early stop. A row is one op at one shape: its calls of a step together. The row "step" is the '
    'whole, "between the ops" what no op takes: embedding, gathers, additions, Python. Operations are multiplications and additions of '
    "matrix products, bytes the least a call must move. The same random weights for every precision."
)
PRECISIONS = {"fp32": (torch.float32, "auto"), "bf16": (torch.bfloat16, "auto"), "int8": (torch.float32, "int8")}
CLOCKS = {"wall": time.perf_counter, "process": time.process_time}
STEP, REST = ("step", ""), ("between the ops", "")


class Watch:
    """Times each call of an op. Its shape is worked out in the first step alone: every step makes the same calls in the same order."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.calls: list[Call] = []
        self.us: list[float] = []

    def start(self) -> None:
        """Forget the times of the last step."""
        self.us = []

    def by_op(self) -> dict[tuple[str, str], float]:
        """Return (op, case) -> microseconds of the step."""
        out: dict[tuple[str, str], float] = defaultdict(float)
        for call, us in zip(self.calls, self.us, strict=True):
            out[call.op, call.case] += us
        return out

    def work(self) -> dict[tuple[str, str], Work]:
        """Return (op, case) -> what a step asks of it."""
        out: dict[tuple[str, str], Work] = {}
        for call in self.calls:
            old = out.get((call.op, call.case), Work())
            out[call.op, call.case] = Work(old.calls + 1, old.flops + call.flops, old.bytes + call.bytes)
        return out

    def watched(self, ops: OpSet) -> OpSet:
        """Return `ops` with every function watched."""
        records = (load_op(name) for name in OP_NAMES)
        return dataclasses.replace(ops, **{op.function: self._watched(op, getattr(ops, op.function)) for op in records})

    def _watched(self, op: Op, function: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(op.reference)

        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            began = self.clock()
            out = function(*args, **kwargs)
            self.us.append((self.clock() - began) * 1e6)
            if len(self.us) > len(self.calls):
                case = signature.bind(*args, **kwargs)
                case.apply_defaults()
                self.calls.append(
                    Call(op.name, case_label(case.arguments), op_flops(op.name, case.arguments), op.bytes_moved(**case.arguments))
                )
            return out

        return run


class Call(NamedTuple):
    """One call of an op in a step."""

    op: str
    case: str
    flops: int
    bytes: int


class Work(NamedTuple):
    """What a step asks of an op at one shape."""

    calls: int = 0
    flops: int = 0
    bytes: int = 0


def case_label(case: dict[str, Any]) -> str:
    """Return what tells the calls of an op apart: the shape of its weight, "[out, in]", where it has one."""
    weight = case.get("weight")
    return "" if weight is None or weight.ndim != 2 else " x ".join(map(str, weight.shape))


def profile(model: str, precision: str, canvas: int, answer: int, repeats: int, clock: str) -> Iterator[dict]:
    """Yield the whole step, then its ops, the most expensive first."""
    dtype, quantised = PRECISIONS[precision]
    watch, facts = Watch(CLOCKS[clock]), MODELS[model]
    decoder = Decoder(facts, dtype, "cpu", precision=quantised, batch_invariant=True, watched=watch.watched)
    state = decoder.begin(decoder.canvases(1, canvas, answer), decoder.params(10**4, answer), is_captured=False)
    samples: dict[tuple[str, str], list[float]] = defaultdict(list)
    with torch.inference_mode():
        # Loading called ops too. The first step allocates.
        watch.calls.clear()
        for index in range(repeats + 1):
            watch.start()
            began = watch.clock()
            decoder.denoiser.step_(state)
            whole = (watch.clock() - began) * 1e6
            by_op = watch.by_op()
            for key, us in {STEP: whole, **by_op, REST: max(whole - sum(by_op.values()), 1e-3)}.items():
                if index:
                    samples[key].append(us)
    work = {STEP: Work(1, step_flops(facts, 1, canvas, answer)), REST: Work(1), **watch.work()}
    total = summary(samples[STEP], clock)["median_us"]
    setting = {"model": model, "dtype": str(dtype).removeprefix("torch."), "batch": 1, "canvas": canvas, "answer_rows": answer}
    for key, timing in sorted(((key, summary(us, clock)) for key, us in samples.items()), key=lambda item: -item[1]["median_us"]):
        us, asked = timing["median_us"], work[key]
        yield {
            **setting,
            "precision": precision,
            "op": key[0],
            "case": key[1],
            "calls": asked.calls,
            "share": us / total,
            "gflop_per_s": asked.flops / us / 1e3 or None,
            "gb_per_s": asked.bytes / us / 1e3 or None,
            "times": {"ours": timing},
        }


def line(row: dict) -> str:
    """Return a row as text: op, ms, share, rates."""
    rates = ((row["gflop_per_s"], "GFLOP/s"), (row["gb_per_s"], "GB/s"))
    told = "  ".join(f"{value:7.1f} {unit}" for value, unit in rates if value is not None)
    name = f"{row['op']} {row['case']}".strip()
    ms = row["times"]["ours"]["median_us"] / 1e3
    return f"{row['precision']:<5} {name:<32} {row['calls']:>4} x {ms:8.2f} ms {row['share']:6.1%}  {told}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=MODELS, default="SmolLM2-135M")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=["int8", "fp32"])
    parser.add_argument("--canvas", type=int, default=256)
    parser.add_argument("--answer", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--machine", default="", help='what else ran meanwhile, such as "shared with other jobs"')
    parser.add_argument("--quick", action="store_true", help="sizes that prove the script and measure nothing")
    parser.add_argument("--out", type=Path, default=RESULTS / "cpu_profile.json")
    options = parser.parse_args()
    if options.quick:
        options.model, options.canvas, options.answer, options.repeats = "tiny", 32, 16, 1
    torch.set_num_threads(options.threads)
    rows: list[dict] = []
    more = {"is_quick": options.quick, "machine": options.machine, "load": list(os.getloadavg())}
    for precision in options.precisions:
        for row in profile(options.model, precision, options.canvas, options.answer, options.repeats, options.clock):
            rows.append(row)
            print(line(row), flush=True)
        store(options.out, make_result("profile", COUNTED, rows, **more))
    write_result(options.out, make_result("profile", COUNTED, rows, **more))


if __name__ == "__main__":
    main()
