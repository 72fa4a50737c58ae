"""What parity on the op's own cases cannot see of stacked adapters: large ranks, bits that ignore batch-mates, and who gets which GEMM."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="Triton is only published for Linux")

from lad_engine.kernels.lora_linear import cublas_kernel, reference, triton_kernel
from lad_engine.ops import select_ops
from parity import assert_parity

PARTS = ((0, 64), (64, 80), (80, 96))


def stack_case(rows: int, rank: int, index: list[int], device: str, adapters: int = 3, width: int = 160) -> dict:
    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=device) / shape[-1] ** 0.5

    stack = (normal(adapters, 3, rank, width), normal(adapters, 96, rank), torch.tensor([0.5, 2.0, 1.0], device=device))
    placed = torch.tensor(index, device=device)
    return {"x": normal(rows, width), "weight": normal(96, width), "bias": normal(96), "stack": (*stack, placed, PARTS)}


@pytest.mark.parametrize("kernel", [triton_kernel, cublas_kernel], ids=["triton", "cublas"])
@pytest.mark.parametrize("rank", [8, 24, 128, 1024])
def test_every_rank_holds_in_fused_weights(kernel, rank, device):
    case = stack_case(6, rank, [2, -1, 0], device)
    assert_parity(f"lora_linear, rank {rank}", kernel.lora_linear, reference.lora_linear, case)


def test_a_row_has_the_same_bits_whatever_else_is_in_the_batch(device):
    case = stack_case(70, 16, [2, -1, 0, 1, 2, -1, 0], device)
    a, b, scales, index, parts = case["stack"]
    together = triton_kernel.lora_linear(**case)
    for sequence in (0, 1, 3, 6):
        part = slice(10 * sequence, 10 * sequence + 10)
        alone = {**case, "x": case["x"][part], "stack": (a, b, scales, index[sequence : sequence + 1], parts)}
        assert torch.equal(triton_kernel.lora_linear(**alone), together[part])
    bare = triton_kernel.lora_linear(case["x"], case["weight"], case["bias"])
    assert torch.equal(together[10:20], bare[10:20])
    assert torch.equal(triton_kernel.lora_linear(case["x"][3:4], case["weight"], case["bias"]), bare[3:4])


def test_an_adapter_is_chosen_where_numbers_between_are_absent_and_slots_hold_anything(device):
    case = stack_case(64, 16, [2, 0], device)
    clean = triton_kernel.lora_linear(**case)
    for tensor in case["stack"][:3]:
        tensor[1] = float("nan")
    for kernel in (triton_kernel, cublas_kernel, reference):
        torch.testing.assert_close(kernel.lora_linear(**case), clean, rtol=1e-5, atol=1e-5)


def test_tiles_know_nothing_of_the_batch():
    # The number of rows is no argument; what is left are the widths and the size of a value.
    assert triton_kernel.launch_config(4096, 6144, 2) == triton_kernel.launch_config(2048, 8192, 2)
    assert triton_kernel.launch_config(4096, 6144, 2)["BLOCK_M"] == 128
    assert triton_kernel.launch_config(2048, 2048, 2)["BLOCK_M"] == 64
    assert triton_kernel.launch_config(576, 960, 4)["BLOCK_N"] == triton_kernel.launch_config(123, 960, 2)["BLOCK_N"] == 16


def test_a_gpu_gets_the_librarys_gemm_and_fixed_tiles_only_where_asked():
    assert select_ops("auto", "cuda").chosen["lora_linear"] == "cublas"
    invariant = select_ops("auto", "cuda", batch_invariant=True)
    assert invariant.chosen["lora_linear"] == "triton"
    assert invariant.why["lora_linear"] == "the same tiles whatever the batch"
    assert select_ops("lora_linear=cublas", "cuda", batch_invariant=True).chosen["lora_linear"] == "cublas"
    assert select_ops("auto", "cpu", batch_invariant=True).chosen["lora_linear"] in ("cpu", "reference")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"parts": ((0, 64), (60, 96))}, "ascending ranges within 96 rows"),
        ({"parts": ()}, "expected 1 to 3 ascending ranges"),
        ({"index": [0, 1, 2, 0]}, "M a divisor of the 6 rows"),
        ({"b": torch.zeros(3, 95, 8)}, r"expected \[A, 3, R, 160\]"),
        ({"paths": [(torch.zeros(1, 160), torch.zeros(96, 1), 1.0, 0, 96)]}, "1 paths are given beside a stack"),
    ],
)
def test_a_stack_that_does_not_fit_is_refused(change, words):
    case = stack_case(6, 8, [0, 1], "cpu")
    a, b, scales, index, parts = case["stack"]
    index = torch.tensor(change["index"]) if "index" in change else index
    case["stack"] = (a, change.get("b", b), scales, index, change.get("parts", parts))
    for kernel in (reference, triton_kernel, cublas_kernel):
        with pytest.raises(ValueError, match=words):
            kernel.lora_linear(**case, paths=change.get("paths", ()))


@pytest.mark.gpu
def test_a_captured_call_follows_what_is_put_into_its_buffers():
    case = stack_case(64, 16, [2, 0], "cuda")
    index = case["stack"][3]
    for kernel in (triton_kernel, cublas_kernel):
        kernel.lora_linear(**case)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = kernel.lora_linear(**case)
        for chosen in ([0, -1], [1, 1], [-1, 2]):
            index.copy_(torch.tensor(chosen))
            graph.replay()
            assert torch.equal(y, kernel.lora_linear(**case))
