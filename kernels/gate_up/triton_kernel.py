"""A GEMM whose programs own the same columns of gate and up, so that SwiGLU is its epilogue and the two products never reach memory.

Tiles are read through tensor descriptors: no address arithmetic in the loop, no masks. They are TMA's from sm_90 on; before, they become
loads of single values, so that fixed tiles come from two steps there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ..ahead_of_time import ARCHITECTURES, Compilation
from ..attention.triton_kernel import architecture_of
from ..device_math import loop_bound
from ..lora_linear.triton_kernel import lora_linear
from ..swiglu.triton_kernel import swiglu
from ..tile_table import check_names
from .reference import check_widths

# A descriptor's rows start at multiples of this.
ALIGNMENT_BYTES = 16
# Fewer programs than this leave much of a GPU of about 130 multiprocessors idle; smaller tiles then spread the work.
ENOUGH_PROGRAMS = 96
# From this width on, large tiles are many programs even for one short canvas; `fixed_config` may look at nothing else.
WIDE = 4096
MANY = 1 << 20
# Programs that follow each other share a block of x or of the weight through the L2 cache: this many blocks of rows at a time.
GROUP_M = 16
TILES_WORTH_TIMING = (
    (64, 64, 64, 4, 4),
    (64, 128, 64, 8, 4),
    (128, 64, 64, 4, 4),
    (128, 64, 64, 8, 4),
    (128, 128, 64, 8, 3),
    (128, 128, 64, 8, 4),
)


def launch_config(rows: int, D: int, F: int, element_bytes: int, architecture: int) -> dict[str, int]:
    """Tile for `[rows, D]` by `[2F, D]` on sm_`architecture`: two fp32 sums of BLOCK_M x BLOCK_N each."""
    if element_bytes == 4:
        # Without tensor cores the operands of a product live in registers, and larger tiles spill.
        return {"BLOCK_M": 32, "BLOCK_N": 16, "BLOCK_K": 16, "num_warps": 4, "num_stages": 2}
    if rows > 64 and triton.cdiv(rows, 128) * triton.cdiv(F, 128) >= ENOUGH_PROGRAMS:
        return _large(architecture)
    if rows > 64 and triton.cdiv(rows, 128) * triton.cdiv(F, 64) >= ENOUGH_PROGRAMS:
        return {"BLOCK_M": 128, "BLOCK_N": 64, "BLOCK_K": 64, "num_warps": 8, "num_stages": 3}
    return {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 64, "num_warps": 4, "num_stages": 3 if architecture < 90 else 4}


def fixed_config(F: int, element_bytes: int, architecture: int) -> dict[str, int]:
    """The one tile of a width and dtype: a row's sums are made in the same order whatever the batch and the bucket."""
    return launch_config(MANY if F >= WIDE else 1, 1, F, element_bytes, architecture)


def candidates(rows: int, D: int, F: int, element_bytes: int, architecture: int) -> list[dict[str, int]]:
    """Configurations worth timing for a shape; one that an architecture cannot hold fails at its launch."""
    own = launch_config(rows, D, F, element_bytes, architecture)
    names = ("BLOCK_M", "BLOCK_N", "BLOCK_K", "num_warps", "num_stages")
    tiles = [dict(zip(names, tile, strict=True)) for tile in TILES_WORTH_TIMING]
    return [own, *(tile for tile in tiles if tile != own)]


def _large(architecture: int) -> dict[str, int]:
    if 90 <= architecture < 120:
        return {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 64, "num_warps": 8, "num_stages": 3}
    # mma.sync wants its operands in registers beside the two sums.
    return {"BLOCK_M": 128, "BLOCK_N": 64, "BLOCK_K": 32, "num_warps": 8, "num_stages": 4}


@triton.jit
def _gate_up_kernel(
    x_desc, weight_desc, out_ptr,
    rows, D, F,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    tiles_m, tiles_n = tl.cdiv(rows, BLOCK_M), tl.cdiv(F, BLOCK_N)
    first_m = tl.program_id(0) // (GROUP_M * tiles_n) * GROUP_M
    group = tl.minimum(GROUP_M, tiles_m - first_m)
    within = tl.program_id(0) % (GROUP_M * tiles_n)
    m_start, n_start = (first_m + within % group) * BLOCK_M, within // group * BLOCK_N

    gate = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    up = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for k in tl.range(0, loop_bound(D), BLOCK_K):
        x = x_desc.load([m_start, k])
        gate_weight = weight_desc.load([n_start, k])
        up_weight = weight_desc.load([F + n_start, k])
        gate = tl.dot(x, tl.trans(gate_weight), gate, input_precision="ieee")
        up = tl.dot(x, tl.trans(up_weight), up, input_precision="ieee")

    # Rounded where the two-step form rounds: both products, then silu.
    dtype = out_ptr.dtype.element_ty
    gate, up = gate.to(dtype).to(tl.float32), up.to(dtype).to(tl.float32)
    silu = (gate / (1.0 + tl.exp(-gate))).to(dtype).to(tl.float32)
    offs_m, offs_n = m_start + tl.arange(0, BLOCK_M), n_start + tl.arange(0, BLOCK_N)
    mask = (offs_m < rows)[:, None] & (offs_n < F)[None, :]
    tl.store(out_ptr + offs_m.to(tl.int64)[:, None] * F + offs_n[None, :], (silu * up).to(dtype), mask=mask)


def gate_up(x: Tensor, weight: Tensor) -> Tensor:
    """Contract of the reference; rows of x and of the weight are a multiple of ALIGNMENT_BYTES long."""
    check_widths(x, weight)
    rows, D, F = x.numel() // x.shape[-1], weight.shape[1], weight.shape[0] // 2
    return _launch(x, weight, launch_config(rows, D, F, *_target(x)))


def invariant(x: Tensor, weight: Tensor) -> Tensor:
    """Contract of the reference; a row has the same bits whatever rows are beside it."""
    check_widths(x, weight)
    element_bytes, architecture = _target(x)
    if architecture < 90:
        # Without TMA a descriptor is read one value at a time; the other fixed tiles are copied ahead of their products.
        return swiglu(lora_linear(x, weight))
    return _launch(x, weight, fixed_config(weight.shape[0] // 2, element_bytes, architecture))


def configured(config: Mapping[str, int]) -> Callable[..., Tensor]:
    """Return `gate_up` with a measured tile in place of `launch_config`'s; ValueError where its names are not those."""
    check_names("gate_up=triton", config, launch_config(1, 1, 1, 2, 90))

    def measured(x: Tensor, weight: Tensor) -> Tensor:
        check_widths(x, weight)
        return _launch(x, weight, config)

    return measured


def _launch(x: Tensor, weight: Tensor, config: Mapping[str, int]) -> Tensor:
    D, F = weight.shape[1], weight.shape[0] // 2
    row_bytes = D * x.element_size()
    if row_bytes % ALIGNMENT_BYTES:
        raise ValueError(f"gate_up: rows are {row_bytes} bytes, expected a multiple of {ALIGNMENT_BYTES}. Use --ops gate_up=cublas.")
    out = torch.empty(*x.shape[:-1], F, dtype=x.dtype, device=x.device)
    if out.numel():
        x, weight = (_described(t) for t in (x.reshape(-1, D), weight))
        programs = triton.cdiv(x.shape[0], config["BLOCK_M"]) * triton.cdiv(F, config["BLOCK_N"])
        x_desc = TensorDescriptor.from_tensor(x, [config["BLOCK_M"], config["BLOCK_K"]])
        weight_desc = TensorDescriptor.from_tensor(weight, [config["BLOCK_N"], config["BLOCK_K"]])
        with torch.cuda.device_of(x):
            _gate_up_kernel[(programs,)](x_desc, weight_desc, out, x.shape[0], D, F, GROUP_M=GROUP_M, **config)
    return out


def _described(t: Tensor) -> Tensor:
    """Return `t` as a descriptor takes it: rows that are contiguous and start at a multiple of ALIGNMENT_BYTES."""
    is_aligned = t.stride(1) == 1 and t.stride(0) * t.element_size() % ALIGNMENT_BYTES == 0 and t.data_ptr() % ALIGNMENT_BYTES == 0
    return t if is_aligned else t.clone(memory_format=torch.contiguous_format)


def _target(x: Tensor) -> tuple[int, int]:
    # The interpreter pays per operation, not per element: it runs the tiles of 16-bit types.
    return x.element_size() if x.is_cuda else 2, architecture_of(x.device)


def ahead_of_time() -> list[Compilation]:
    """The MLPs of SmolLM2-135M, Llama-3.2-1B and 3.1-8B on every architecture; fp16, plain fp32 and odd sizes on sm_90."""
    everywhere = (("bf16", 256, 576, 1536), ("bf16", 256, 2048, 8192), ("bf16", 128, 2048, 6144))
    on_hopper = (("fp16", 512, 4096, 14336), ("fp32", 7, 144, 123))
    out = [_compilation(*size, architecture) for size in everywhere for architecture in ARCHITECTURES]
    return [*out, *(_compilation(*size, 90) for size in on_hopper)]


def _compilation(dtype: str, rows: int, D: int, F: int, architecture: int) -> Compilation:
    config = launch_config(rows, D, F, 4 if dtype == "fp32" else 2, architecture)
    descriptors = {
        "x_desc": f"tensordesc<{dtype}[{config['BLOCK_M']}, {config['BLOCK_K']}]>",
        "weight_desc": f"tensordesc<{dtype}[{config['BLOCK_N']}, {config['BLOCK_K']}]>",
    }
    arguments = {**descriptors, "out_ptr": f"*{dtype}", "rows": rows, "D": D, "F": F, "GROUP_M": GROUP_M, **config}
    return Compilation(_gate_up_kernel, arguments, dtype != "fp32", (architecture,))
