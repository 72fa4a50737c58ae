"""What to know of a GPU before tuning anything: versions, launch gap, the library's GEMM, attention and sampling times, the loop node.

    python -m bench.first_contact --out bench/results/first_contact_<gpu>.json

Each section stands alone: one that fails is recorded with its error and the next one runs. The file is written after every section.
"""

from __future__ import annotations

import argparse
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import gettempdir
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.random_model import MODELS
from bench.results import RESULTS, device_slug, make_result, store, write_result
from bench.roofs import measure_roofs
from bench.timing import cache_bytes, call_us, copies, events_us, interleaved_us, release
from lad_engine.errors import LadError
from lad_engine.runtime.cuda_capture import CudaCapture
from lad_engine.runtime.decode_loop import build_library

EXPECTED_FAILURES = (LadError, RuntimeError, ValueError, ImportError, OSError, AttributeError, TypeError, subprocess.SubprocessError)
COUNTED = "One library call or one empty step, median over graph replays of many calls on a GPU; inputs rotate past the cache."
ATTENTION_BATCHES = ((1, 256), (1, 512), (1, 1024), (1, 2048), (8, 512))


class Contact:
    """The device, the sizes and what is found; a section is a method that yields rows."""

    def __init__(self, device: str, is_quick: bool) -> None:
        self.device, self.is_quick = device, is_quick
        self.dtype = torch.bfloat16
        self.models = ("tiny",) if is_quick else ("SmolLM2-135M", "Llama-3.2-1B", "Llama-3.2-3B", "Llama-3.1-8B")
        self.canvases = (32,) if is_quick else (256, 512, 1024, 2048, 4096)
        self.times = {"calls": 2, "repeats": 3} if is_quick else {"calls": 20, "repeats": 7}

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=self.device, dtype=self.dtype)

    def roofs(self) -> Iterator[dict]:
        yield measure_roofs(self.device, is_quick=self.is_quick).as_dict()

    def gap(self) -> Iterator[dict]:
        """The least a kernel costs inside a graph: an addition to one number."""
        x = torch.zeros(1, device=self.device)
        yield {"times": {"add_one": call_us(lambda: x.add_(1), self.device, calls=4 if self.is_quick else 500)}}

    def gemm(self) -> Iterator[dict]:
        """Every projection of every model at every canvas length."""
        for name in self.models:
            facts = MODELS[name]
            D, q, kv = facts.width, facts.query_heads * facts.head_width, facts.kv_heads * facts.head_width
            weights = {"qkv": (q + 2 * kv, D), "output": (D, q), "gate_up": (2 * facts.mlp_width, D), "down": (D, facts.mlp_width)}
            for projection, (rows_out, rows_in) in weights.items():
                count = copies(rows_out * rows_in * 2, cache_bytes(self.device))
                w = [self.normal(rows_out, rows_in) for _ in range(count)]
                for canvas in self.canvases:
                    x = [self.normal(canvas, rows_in) for _ in range(count)]
                    runs = [lambda a=a, b=b: F.linear(a, b) for a, b in zip(x, w, strict=True)]
                    timing = call_us(runs, self.device, **self.times)
                    rate = 2 * canvas * rows_out * rows_in / timing["median_us"] / 1e6
                    where = {"model": name, "canvas": canvas, "projection": projection}
                    yield {**where, "tflop_per_s": rate, "times": {"library": timing}}
                release()

    def attention(self) -> Iterator[dict]:
        """The library's attention kernels, bidirectional, on heads cut from a packed projection as the model has them."""
        for name in self.models:
            facts = MODELS[name]
            H, G, K = facts.query_heads, facts.kv_heads, facts.head_width
            for batch, canvas in ((1, 32),) if self.is_quick else ATTENTION_BATCHES:
                packed = self.normal(batch, canvas, H + 2 * G, K)
                q, k, v = (part.transpose(1, 2) for part in packed.split((H, G, G), dim=2))
                times, refused = {}, {}
                for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH):

                    def run(backend: SDPBackend = backend, q=q, k=k, v=v) -> torch.Tensor:
                        with sdpa_kernel(backend):
                            return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)

                    try:
                        run()
                        times[backend.name.lower()] = call_us(run, self.device, **self.times)
                    except RuntimeError as error:
                        refused[backend.name.lower()] = str(error).split("\n")[0][:200]
                where = {"model": name, "batch": batch, "canvas": canvas, "flops": 4 * batch * H * canvas**2 * K}
                yield {**where, "times": times, "refused": refused}

    def sampling(self) -> Iterator[dict]:
        """What choosing tokens costs with library calls: head, scaling, top-k, softmax, multinomial, and a head in slices."""
        answer_rows = 16 if self.is_quick else 256
        for name in self.models:
            facts = MODELS[name]
            V, D = facts.vocab_size, facts.width
            h, w = self.normal(answer_rows, D), self.normal(V, D) / D**0.5
            z = F.linear(h, w)
            slice_rows = min(V, 16384)
            buffer = torch.empty(answer_rows, slice_rows, device=self.device, dtype=self.dtype)

            def in_slices(h=h, w=w, buffer=buffer, V=V, slice_rows=slice_rows) -> None:
                for start in range(0, V, slice_rows):
                    part = w[start : start + slice_rows]
                    torch.mm(h, part.t(), out=buffer[:, : part.shape[0]])

            runs: dict[str, Callable[[], object]] = {
                "head": lambda h=h, w=w: F.linear(h, w),
                "head_in_slices": in_slices,
                "scale": lambda z=z: z / 0.7,
                "to_float": lambda z=z: z.float(),
                "argmax": lambda z=z: z.argmax(-1),
                "topk_3": lambda z=z: z.topk(3, -1),
                "topk_50": lambda z=z: z.topk(50, -1),
                "softmax": lambda z=z: z.softmax(-1),
            }
            # It checks its weights on the host, and a capture that fails leaves torch's allocator waiting for its end.
            draws: dict[str, Callable[[], object]] = {
                "multinomial_of_3": lambda z=z: torch.multinomial(z[:, :3].float().softmax(-1), 1),
                "multinomial_of_all": lambda z=z: torch.multinomial(z.float().softmax(-1), 1),
            }
            times = {what: call_us(run, self.device, **self.times) for what, run in runs.items()}
            times |= interleaved_us(draws, self.times["repeats"])
            yield {"model": name, "answer_rows": answer_rows, "times": times}
            release()

    def loop_node(self) -> Iterator[dict]:
        """What one turn of the single-graph loop costs beside a replay by the host, with 1, 20 and 200 kernels in the step."""
        if torch.device(self.device).type != "cuda":
            return
        library = build_library(Path(gettempdir()) / "lad-engine-bench", torch.cuda.get_device_capability())
        backend, turns = CudaCapture(self.device, library), 100
        for kernels in (1, 20, 200):
            x = torch.zeros(1 << 14, device=self.device)
            flags = {
                "done": torch.zeros(1, dtype=torch.bool),
                "step": torch.zeros((), dtype=torch.int64),
                "bounds": torch.tensor([turns, 0]),
            }
            state = SimpleNamespace(**{name: flag.to(self.device) for name, flag in flags.items()})

            def step(x=x, state=state, kernels=kernels) -> None:
                for _ in range(kernels):
                    x.add_(1)
                state.step.add_(1)

            graph = backend.capture(step, state)
            loop = backend.loop(graph, state)
            graph.graph.instantiate()
            times = {
                "loop": events_us(loop, self.device, before=state.step.zero_, calls=turns),
                "replay": events_us(
                    lambda graph=graph: [graph.replay() for _ in range(turns)], self.device, before=state.step.zero_, calls=turns
                ),
            }
            state.step.zero_()
            loop()
            taken = int(state.step)
            state.step.zero_()
            state.done.fill_(True)
            loop()
            yield {"kernels": kernels, "turns": taken, "turns_when_done": int(state.step), "times": times}


SECTIONS = ("roofs", "gap", "loop_node", "gemm", "attention", "sampling")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=RESULTS / f"first_contact_{device_slug()}.json")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--quick", action="store_true", help="sizes that prove the script and measure nothing")
    options = parser.parse_args()
    contact = Contact("cuda" if torch.cuda.is_available() else "cpu", options.quick)
    rows: list[dict] = []
    for section in options.sections:
        started, found = time.perf_counter(), 0
        try:
            for row in getattr(contact, section)():
                rows.append({"section": section, "dtype": "bfloat16", **row})
                found += 1
        except EXPECTED_FAILURES as error:
            rows.append({"section": section, "failed": f"{type(error).__name__}: {error}"[:500]})
        print(f"{section}: {found} rows in {time.perf_counter() - started:.1f} s", flush=True)
        result = make_result("first_contact", COUNTED, rows, is_quick=options.quick)
        store(options.out, result)
    write_result(options.out, result)


if __name__ == "__main__":
    main()
