"""Compile what the named ops list, for every architecture, and print one JSON line per kernel: sizes, spills, instructions.

A program of its own, because TRITON_INTERPRET is read when triton is imported, and the tests import it to interpret.
"""

from __future__ import annotations

import concurrent.futures
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lad_engine.kernels.ahead_of_time import Compilation

DISASSEMBLER = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
MATRIX_INSTRUCTION = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}


def specialised(compilation: Compilation) -> tuple[ASTSource, dict[str, Any]]:
    """Return the source and options a launch with these arguments would compile: a 1 is baked in, a multiple of 16 is marked."""
    names = compilation.kernel.arg_names
    missing = [name for name in names if name not in compilation.arguments]
    if missing:
        raise ValueError(f"{compilation.label}: {', '.join(missing)} have no example.")
    signature, constants, attributes = {}, {}, {}
    for index, name in enumerate(names):
        value = compilation.arguments[name]
        is_constant = compilation.kernel.params[index].is_constexpr or value is None or (value == 1 and type(value) is int)
        if is_constant:
            signature[name], constants[(index,)] = "constexpr", value
        elif isinstance(value, str) and value.startswith("tensordesc"):
            signature[name] = value
        elif isinstance(value, str):
            signature[name], attributes[(index,)] = value, [["tt.divisibility", 16]]
        elif isinstance(value, bool):
            signature[name] = "i1"
        elif isinstance(value, int):
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0:
                attributes[(index,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "fp32"
    options = {name: value for name, value in compilation.arguments.items() if name not in names}
    return ASTSource(compilation.kernel, signature, constants, attributes), options


def report(op: str, index: int, architecture: int) -> dict[str, Any]:
    """Compile one kernel and read its resources out of the binary."""
    compilation = listed(op)[index]
    source, options = specialised(compilation)
    out = {"op": op, "label": compilation.label, "architecture": architecture, "is_matrix": compilation.is_matrix}
    try:
        built = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    # Whatever the compiler raises is the finding; the test prints it.
    except Exception as error:  # noqa: BLE001
        return {**out, "error": f"{type(error).__name__}: {error}"[:2000]}
    return {
        **out,
        "shared_bytes": built.metadata.shared,
        "has_matrix_instruction": MATRIX_INSTRUCTION[architecture] in built.asm["ptx"],
        "has_aligned_rows": has_aligned_rows(compilation),
        "copies_ahead": "cp.async" in built.asm["ptx"],
        **resources(built.asm["cubin"]),
    }


def has_aligned_rows(compilation: Compilation) -> bool:
    """Say whether all rows that a kernel is given by pointers start at multiples of 16 elements (a stride of 1 is not a row's)."""
    strides = [value for name, value in compilation.arguments.items() if name.startswith("stride_") and value != 1]
    return bool(strides) and not any(stride % 16 for stride in strides)


def resources(binary: bytes) -> dict[str, int]:
    """Return the registers and the stack bytes (spills) of a compiled kernel; nothing where Triton brings no disassembler."""
    if not DISASSEMBLER.exists():
        return {}
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        text = subprocess.run([DISASSEMBLER, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True).stdout
    usage = dict(re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text))
    return {"registers": int(usage["REG"]), "stack_bytes": int(usage["STACK"]) + int(usage["LOCAL"])}


def listed(op: str) -> list[Compilation]:
    return importlib.import_module(f"lad_engine.kernels.{op}.triton_kernel").ahead_of_time()


def main(ops: list[str]) -> None:
    jobs = [
        (op, index, architecture)
        for op in ops
        for index, compilation in enumerate(listed(op))
        for architecture in compilation.architectures
    ]
    with concurrent.futures.ProcessPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for line in pool.map(report, *zip(*jobs, strict=True)):
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
