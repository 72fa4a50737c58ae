"""Call every hand-written GPU kernel once on its smaller parity cases, and nothing else: what compute-sanitizer is run over.

    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck --error-exitcode 9 python -m bench.sanitize

Without torch's cache every tensor is its own allocation, so that memcheck sees an access one element beyond it.
"""

from __future__ import annotations

import argparse

import torch

from lad_engine.ops import OP_NAMES, load_op

HAND_WRITTEN = ("triton", "cuda")


def run_op(name: str, device: str, dtype: torch.dtype, most: int) -> list[str]:
    """Call the hand-written backends of one op on its `most` smallest cases; returns what was called."""
    op, called = load_op(name), []
    cases = sorted(op.cases(device, dtype), key=lambda case: op.bytes_moved(**case))[:most]
    for backend in op.backends:
        if backend in HAND_WRITTEN:
            kernel = op.implementation(backend)
            for case in cases:
                kernel(**case)
            called.append(f"{name}={backend}: {len(cases)} cases")
    return called


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ops", nargs="+", choices=OP_NAMES, default=OP_NAMES)
    parser.add_argument("--most", type=int, default=6, help="cases of each op")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device here: nothing to check")
        return
    refused = []
    for name in options.ops:
        try:
            for line in run_op(name, "cuda", torch.bfloat16, options.most):
                torch.cuda.synchronize()
                print(line, flush=True)
        except Exception as error:  # noqa: BLE001 - Triton's compiler raises classes of its own, and the other ops are to be checked
            refused.append(name)
            print(f"{name}: {type(error).__name__}: {error}"[:500], flush=True)
    if refused:
        raise SystemExit(f"not checked to the end: {', '.join(refused)}")


if __name__ == "__main__":
    main()
