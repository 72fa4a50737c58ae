"""What a Triton backend asks to be compiled without a GPU: its kernels as a launch would specialise them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ARCHITECTURES = (80, 90, 100)


@dataclass(frozen=True)
class Compilation:
    """One kernel at one launch configuration; `triton_kernel.py` lists its own in `ahead_of_time() -> list[Compilation]`.

    kernel: the `@triton.jit` function. arguments: every parameter by name, as a launch would pass it: a pointer as its type ("*bf16",
    "*i64"), a tensor descriptor as "tensordesc<bf16[128, 64]>", or None; a number as an example (divisible by 16 where the model's is,
    since the launch specialises on that); a compile-time value as itself. Names that are no parameter are options of the launch
    (num_warps, num_stages), so that
    `{**pointers, **sizes, **launch_config(...)}` is the usual value. is_matrix: it multiplies matrices, and must use the tensor
    cores' own instructions (mma.sync, wgmma, tcgen05) where its dtype has them.
    """

    kernel: Any
    arguments: Mapping[str, Any]
    is_matrix: bool = False
    architectures: tuple[int, ...] = ARCHITECTURES

    @property
    def label(self) -> str:
        """The kernel, the types of its pointers and its compile-time values, for test output."""
        types = "".join(dict.fromkeys(value for value in self.arguments.values() if isinstance(value, str)))
        constants = (f"{name}={value}" for name, value in self.arguments.items() if name.isupper() or name.startswith("num_"))
        return " ".join((self.kernel.__name__, types, *constants))
