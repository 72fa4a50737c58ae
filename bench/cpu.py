"""The CPU targets of this engine, each a ratio of two things timed in turns in this process.

python -m bench.cpu --out bench/results/cpu_targets.json                # all parts; a quiet machine, about six minutes on two cores
python -m bench.cpu --parts step head update                            # some of them
python -m bench.cpu --parts start --model default                       # memory and start of `generate` (the default base, cached)
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from bench.authors_loop import AuthorsLoop, AuthorsSettings
from bench.autoregressive import generate_us
from bench.decoder import Decoder
from bench.op_cases import Setting, op_cases
from bench.op_peers import op_peers
from bench.peers import authors_forward, forward_of, transformers_model
from bench.random_model import MASK_ID, MODELS, random_ids
from bench.results import REPOSITORY, RESULTS, make_result, store, write_result
from bench.timing import interleaved_us, summary
from lad_engine.ops import load_op

COUNTED = (
    "All contestants of a row take turns. step: ours embedding to state update, transformers its forward with logits of the answer rows. "
    "head: projection, top 3, softmax and draw of the answer rows. update: ours the whole state change, the authors' lists, state history "
    "and re-noising of one step. answer: a whole decode, its start included. generate: as many new tokens as the answer has. "
    "start: a new process from its first instruction to the first step, and its largest resident set. The same random weights for all."
)
STEPS = 16
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PARTS = ("step", "head", "update", "answer", "generate", "start")

_START = """
import json, resource, sys, time
from lad_engine import Engine
keys = json.loads(sys.argv[1])
engine = Engine.load(**keys)
loaded = time.time()
first = None
for event in engine.stream("What is the capital of France?", engine.sampling(steps=16)):
    first = first or time.time()
print(json.dumps({"loaded": loaded, "first": first, "peak_kb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}))
"""


class Bench:
    """One model in several precisions, made when first asked for."""

    def __init__(self, model: str, canvas: int, answer: int, repeats: int) -> None:
        self.facts, self.canvas, self.answer, self.repeats = MODELS[model], canvas, answer, repeats
        self._decoders: dict[str, Decoder] = {}

    def decoder(self, precision: str) -> Decoder:
        """Return ours in "fp32", "bf16" or "int8" (quantised fp32)."""
        if precision not in self._decoders:
            dtype = DTYPES.get(precision, torch.float32)
            quantised = "int8" if precision == "int8" else "auto"
            self._decoders[precision] = Decoder(self.facts, dtype, "cpu", precision=quantised, batch_invariant=True)
        return self._decoders[precision]

    def row(self, part: str, times: dict, against: dict[str, tuple[str, str]], **more: object) -> dict:
        """Return a row; against: ratio name -> (theirs, ours)."""
        ratios = {name: times[theirs]["median_us"] / times[ours]["median_us"] for name, (theirs, ours) in against.items()}
        setting = {"model": self.facts.name, "batch": 1, "canvas": self.canvas, "answer_rows": self.answer}
        return {**setting, "part": part, "times": times, "ratios": ratios, **more}

    def step(self) -> Iterator[dict]:
        """Time one denoising step in each precision against transformers in both dtypes."""
        runs: dict[str, Callable[[], object]] = {}
        for precision in ("fp32", "bf16", "int8"):
            decoder = self.decoder(precision)
            params = decoder.params(10**4, self.answer)
            state = decoder.begin(decoder.canvases(1, self.canvas, self.answer), params, is_captured=False)
            runs[f"ours {precision}"] = torch.inference_mode()(lambda decoder=decoder, state=state: decoder.denoiser.step_(state))
        for name, dtype in DTYPES.items():
            theirs = transformers_model(self.decoder(name).transformer, dtype, "cpu")
            runs[f"transformers {name}"] = forward_of(theirs, random_ids(self.facts, 1, self.canvas), self.answer)
        times = interleaved_us(runs, self.repeats, warm_up=1)
        pairs = {
            f"{ours} against {theirs}": (f"transformers {theirs}", f"ours {ours}") for ours in ("fp32", "bf16", "int8") for theirs in DTYPES
        }
        yield self.row("step", times, pairs)

    def head(self) -> Iterator[dict]:
        """Time projection and draw of the answer rows against the library's calls on the same numbers."""
        ours = load_op("lm_head").implementation("cpu")
        for name, dtype in DTYPES.items():
            at = Setting(self.facts, 1, self.canvas, self.answer, dtype, "cpu")
            case = op_cases("lm_head", at)["top 3"]
            (peer, run), *_ = op_peers("lm_head", case).items()
            with torch.inference_mode():
                times = interleaved_us({"ours": lambda case=case: ours(**case), peer: run}, self.repeats, warm_up=1)
            yield self.row("head", times, {f"head in {name}": (peer, "ours")}, dtype=name)

    def update(self) -> Iterator[dict]:
        """Time the state change of a step against what the authors' loop does in Python."""
        case = op_cases("update", Setting(self.facts, 1, self.canvas, self.answer, torch.float32, "cpu"))["random"]
        loop = AuthorsLoop(authors_forward(torch.nn.Identity()), MASK_ID, 2, "cpu", AuthorsSettings(steps=STEPS))
        start = self.canvas - self.answer
        tokens, probabilities = torch.randint(8, 1000, (self.canvas, 1)), torch.rand(self.canvas, 1)
        ids, states = list(range(self.canvas)), []

        def authors() -> None:
            listed, _ = tokens[:, 0].tolist(), probabilities[:, 0].float().cpu().tolist()
            predicted = ids[:start] + listed[start:]
            states.append(predicted)
            loop.renoise(predicted, start, len(states) % STEPS)
            _ = len(states) >= 3 and states[-1] == states[-2] == states[-3]

        ours = load_op("update").implementation("cpu")
        with torch.inference_mode():
            times = interleaved_us({"ours": lambda: ours(**case), "authors": authors}, 40 * self.repeats, warm_up=5)
        yield self.row("update", times, {"update": ("authors", "ours")})

    def answers(self) -> Iterator[dict]:
        """Time a whole decode of STEPS steps against the authors' loop in the same dtype."""
        prompt = random_ids(self.facts, 1, max(self.canvas - self.answer, 1))[0].tolist()
        for name, dtype in DTYPES.items():
            theirs = transformers_model(self.decoder(name).transformer, dtype, "cpu")
            settings = AuthorsSettings(steps=STEPS, early_stop=False)
            loop = AuthorsLoop(authors_forward(theirs), MASK_ID, self.facts.eos_ids[0], "cpu", settings)
            runs = {"ours": lambda name=name: self._decode(name), "authors": lambda loop=loop: loop.decode(prompt, self.canvas)}
            times = interleaved_us(runs, max(1, self.repeats // 3), warm_up=0)
            yield self.row("answer", times, {f"answer in {name}": ("authors", "ours")}, dtype=name, steps=STEPS)

    def generated(self) -> Iterator[dict]:
        """Time whole answers in each precision, and as many tokens of transformers' generate in both dtypes."""
        prompt = max(self.canvas - self.answer, 1)
        runs = {
            f"ours {precision}": interleaved_us({"it": lambda p=precision: self._decode(p)}, 2, warm_up=0)["it"]
            for precision in ("fp32", "bf16", "int8")
        }
        theirs = {f"generate {name}": generate_us(self.decoder(name), 1, prompt, self.answer, 1) for name in DTYPES}
        pairs = {
            f"{ours} against generate {name}": (f"generate {name}", f"ours {ours}") for ours in ("fp32", "bf16", "int8") for name in DTYPES
        }
        yield self.row("generate", {**runs, **theirs}, pairs, steps=STEPS)

    @torch.inference_mode()
    def _decode(self, precision: str) -> None:
        decoder = self.decoder(precision)
        canvases, params = decoder.canvases(1, self.canvas, self.answer), decoder.params(STEPS, self.answer)
        with decoder.decode(decoder.begin(canvases, params, False), "eager") as run:
            for _ in run.frames(False):
                pass
            run.outcome(0)


def start_rows(model: str, repeats: int) -> Iterator[dict]:
    """Yield a row per dtype: seconds from a new process to its first step, and its peak memory."""
    source = {} if model == "default" else {"base": model, "adapter": "none"}
    for dtype in ("float32", "bfloat16"):
        samples, peak, refused = [], 0.0, {}
        for _ in range(repeats):
            began = time.time()
            command = [sys.executable, "-c", _START, json.dumps({**source, "device": "cpu", "dtype": dtype})]
            done = subprocess.run(command, cwd=REPOSITORY, env=os.environ, capture_output=True, text=True, check=False)
            if done.returncode:
                refused["start"] = done.stderr.strip().splitlines()[-1][:300]
                break
            found = json.loads(done.stdout.strip().splitlines()[-1])
            samples.append((found["first"] - began) * 1e6)
            peak = max(peak, found["peak_kb"] * 1024 / 1e6)
        row = {"part": "start", "model": model, "dtype": dtype, "batch": 1, "refused": refused, "ratios": {}}
        yield {**row, **({"times": {"start to first step": summary(samples, "wall")}, "peak_mb": peak} if samples else {})}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--model", default="default", help="what part start loads")
    parser.add_argument("--canvas", type=int, default=256)
    parser.add_argument("--answer", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--machine", default="", help='what else ran meanwhile, such as "shared with other jobs"')
    parser.add_argument("--quick", action="store_true", help="sizes that prove the script and measure nothing")
    parser.add_argument("--out", type=Path, default=RESULTS / "cpu_targets.json")
    options = parser.parse_args()
    if options.quick:
        options.canvas, options.answer, options.repeats, options.parts = 32, 16, 1, [part for part in options.parts if part != "start"]
    bench = Bench("tiny" if options.quick else "SmolLM2-135M", options.canvas, options.answer, options.repeats)
    parts = {"step": bench.step, "head": bench.head, "update": bench.update, "answer": bench.answers, "generate": bench.generated}
    parts["start"] = lambda: start_rows(options.model, min(options.repeats, 3))
    rows: list[dict] = []
    more = {"is_quick": options.quick, "machine": options.machine, "load": list(os.getloadavg())}
    for part in options.parts:
        for row in parts[part]():
            rows.append(row)
            print(part, row.get("ratios"), row.get("refused", ""), flush=True)
            store(options.out, make_result("cpu", COUNTED, rows, **more))
    write_result(options.out, make_result("cpu", COUNTED, rows, **more))


if __name__ == "__main__":
    main()
