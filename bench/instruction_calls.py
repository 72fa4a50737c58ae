"""Calls each C++ kernel of the CPU once at a small fixed size, without torch: what `instructions.py` runs inside valgrind.

python bench/instruction_calls.py <path of the extension lad_engine._cpu>
"""

from __future__ import annotations

import array
import importlib.util
import random
import sys
import types
from typing import Any

# The element types the extension asks torch for, and how Python's arrays name them.
CODES = {"int64": "q", "int32": "i", "int8": "b", "bool": "b", "float32": "f", "float64": "d", "bfloat16": "H"}
N, D, V, R, T, H, G, K = 32, 256, 4096, 64, 64, 4, 2, 32


class Numbers:
    """As much of a tensor as the extension reads: contiguous, on the CPU."""

    is_cpu = True

    def __init__(self, kind: str, *shape: int, fill: float | None = None) -> None:
        count = 1
        for size in shape:
            count *= size
        self.dtype, self.shape = kind, shape
        self._strides = tuple(_product(shape[axis + 1 :]) for axis in range(len(shape)))
        # The bit patterns of bfloat16 between 1 and 2.
        draw = (lambda: 0x3F80 + RANDOM.randrange(128)) if kind == "bfloat16" else (lambda: RANDOM.uniform(-1, 1))
        values = (draw() if fill is None else fill for _ in range(count))
        self._numbers = array.array(CODES[kind], values if kind in ("float32", "float64") else map(int, values))

    def stride(self) -> tuple[int, ...]:
        """Return the distance between entries of each axis."""
        return self._strides

    def data_ptr(self) -> int:
        """Return the address of the first entry."""
        return self._numbers.buffer_info()[0]


RANDOM = random.Random(0)


def _product(sizes: tuple[int, ...]) -> int:
    out = 1
    for size in sizes:
        out *= size
    return out


def load_extension(path: str) -> Any:
    """Return the extension module, with the names of element types in torch's place."""
    stand_in = types.ModuleType("torch")
    for name in CODES:
        setattr(stand_in, name, name)
    sys.modules["torch"] = stand_in
    spec = importlib.util.spec_from_file_location("lad_engine._cpu", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows_of_a_layer(cpu: Any) -> None:
    """Norm, gate, quantisation and attention in fp32, and the norm in bfloat16."""
    for kind in ("float32", "bfloat16"):
        x, residual, weight, h, y = (Numbers(kind, *shape) for shape in ((N, D), (N, D), (D,), (N, D), (N, D)))
        cpu.add_rmsnorm(x, residual, weight, 1e-5, h, y, None, None, 1)
    x, gate_up, y = Numbers("float32", N, D), Numbers("float32", N, 2 * D), Numbers("float32", N, D)
    values, scale = Numbers("int8", N, D, fill=0), Numbers("float32", N)
    cpu.swiglu(gate_up, None, values, scale, 1)
    cpu.quantise_rows(x, values, scale, 1)
    cpu.dequantise(Numbers("int32", N, D, fill=1000), scale, Numbers("float32", D), None, y, 1)
    qkv, tables = Numbers("float32", 1, T, H + 2 * G, K), [Numbers("float32", T, K // 2) for _ in range(2)]
    if cpu.attends():
        cpu.packed_attention(qkv, *tables, None, Numbers("float32", cpu.attention_room(T, G, K)), Numbers("float32", 1, T, H, K), 1)


def tokens_of_a_step(cpu: Any) -> None:
    """Token choice, state update and both kinds of noise."""
    ints = {name: Numbers("int64", N, fill=value) for name, value in (("top_k", 3), ("tokens", 5), ("seeds", 7), ("steps", 1), ("at", 2))}
    columns = [Numbers("float32", N, fill=0.5), Numbers("float32", N, fill=0.7), ints["top_k"], Numbers("float32", N, fill=1.0)]
    flags = [Numbers("bool", N, fill=0), Numbers("bool", N, fill=1)]
    scan = cpu.TokenScan("choose_token", *columns, *flags, Numbers("int64", 0), Numbers("float32", N, 0), V, 3)
    scan.choose(Numbers("float32", N, V), False, 1, Numbers("int64", N, fill=0), Numbers("float32", N))
    cpu.gaussian_noise(ints["seeds"], ints["at"], ints["steps"], 1, Numbers("float32", N, 512), 1)
    cpu.uniform(Numbers("int64", 1, fill=7), Numbers("int64", 4096, fill=3), Numbers("int64", fill=1), 1, Numbers("float32", 1, 4096))
    eligible, weight = Numbers("bool", 1, 4096, fill=1), Numbers("float32", 1, 4096, fill=1.0)
    one = [Numbers("int64", 1, fill=value) for value in (2000, 7)]
    cpu.renoise(
        Numbers("int64", 1, 4096, fill=9), eligible, weight, *one, Numbers("int64", fill=1), 1, 1, Numbers("int64", 1, 4096, fill=0)
    )
    places = [Numbers("int64", N, fill=value) for value in (0, 256, 7)]
    out, level = Numbers("int64", N, 256, fill=0), Numbers("float32", N)
    cpu.structured_noise(Numbers("int64", N, 256, fill=9), *places, Numbers("int64", fill=1), 1, 0, 0.5, out, level, 1)
    update(cpu)


def update(cpu: Any) -> None:
    """One step of N rows that put noise back into half of their R positions."""
    whole = {name: Numbers("int64", N, R, fill=9) for name in ("answer", "before", "predicted", "shown", "first_set", "last_changed")}
    flags = {name: Numbers("bool", N, R, fill=value) for name, value in (("is_open", 1), ("was_shown", 0), ("retained", 0))}
    counts = ("answer_start", "answer_length", "seeds", "steps", "evaluations", "repeats", "nfe", "row_steps")
    fills = {"answer_length": R, "steps": 1000}
    per_row = {name: Numbers("int64", N, fill=fills.get(name, 0)) for name in counts}
    per_row |= {name: Numbers("bool", N, fill=0) for name in ("early_stop", "done", "acted", "stopped_early")}
    more = {"confidence": Numbers("float32", N, R, fill=0.5), "ids": Numbers("int64", N, R, fill=9), "eos_ids": Numbers("int64", 1, fill=2)}
    buffers = types.SimpleNamespace(**whole, **flags, **per_row, **more, step=Numbers("int64", fill=0))
    names = ("is_weighted", "is_clusters", "is_bernoulli", "is_lowest", "retains", "transfers", "locks", "is_permanent", "splits")
    off = {name: Numbers("bool", N, fill=0) for name in (*names, "by_confidence", "delays_eos")}
    rules = types.SimpleNamespace(
        **off, redraws=Numbers("bool", N, fill=1), noise_clip=Numbers("float32", N), threshold=Numbers("float32", N)
    )
    tables = types.SimpleNamespace(whole=Numbers("int64", 1, 9, N, fill=R // 2), probability=Numbers("float64", 1, N))
    token, confidence = Numbers("int64", N, R, fill=11), Numbers("float32", N, R, fill=0.5)
    # Read once before it is counted once more.
    for _ in range(2):
        cpu.update(buffers, rules, tables, token, confidence, 1, 1)


def main() -> None:
    cpu = load_extension(sys.argv[1])
    rows_of_a_layer(cpu)
    tokens_of_a_step(cpu)
    print(cpu.level())


if __name__ == "__main__":
    main()
