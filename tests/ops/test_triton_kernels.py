"""What parity on the ops' own cases cannot see of the Triton kernels: rounding in 16 bits, tile edges, tile choices, a whole model."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton", reason="Triton is only published for Linux")

from lad_engine.kernels.add_rmsnorm import triton_kernel as norm_kernel
from lad_engine.kernels.attention import triton_kernel as attention_kernel
from lad_engine.kernels.attention.reference import attention
from lad_engine.kernels.rotary import triton_kernel as rotary_kernel
from lad_engine.kernels.swiglu import triton_kernel as swiglu_kernel
from lad_engine.model.transformer import Transformer
from lad_engine.model.weights import open_checkpoint
from lad_engine.ops import load_op, select_ops
from parity import assert_parity
from tiny_checkpoint import make_tiny

HEAD_WIDTHS = (16, 64, 96, 128)


@pytest.mark.parametrize("name", ["add_rmsnorm", "attention", "rotary", "swiglu"])
def test_sixteen_bit_results_hold_to_the_reference(name, device):
    op = load_op(name)
    # The interpreter computes float16 as NumPy does; its bfloat16 is wrong.
    for case in op.cases(device, torch.float16):
        assert_parity(f"{name}=triton", op.implementation("triton"), op.reference, case)


@pytest.mark.parametrize("name", ["add_rmsnorm", "rotary", "swiglu"])
def test_values_are_rounded_where_the_reference_rounds(name, device):
    op = load_op(name)
    for case in op.cases(device, torch.float16):
        ours, theirs = op.implementation("triton")(**case), op.reference(**case)
        for mine, plain in zip(*((out if isinstance(out, tuple) else (out,)) for out in (ours, theirs)), strict=True):
            # A missing rounding is no error that parity could see, and changes a quarter of the values; another exp changes few.
            assert (mine == plain).float().mean() > 0.98


@pytest.mark.parametrize("tile", ["few programs", "many programs"])
def test_attention_holds_at_the_edges_of_a_tile(tile, device, monkeypatch):
    monkeypatch.setattr(attention_kernel, "ENOUGH_PROGRAMS", 0 if tile == "many programs" else 10**9)
    for T, S, lengths in ((128, 128, [1, 63, 64, 128]), (65, 193, [129, 128, 193, 192])):
        q, k, v = (torch.randn(4, n, heads, 64, device=device) for n, heads in ((T, 3), (S, 1), (S, 1)))
        case = {"q": q, "k": k, "v": v, "lengths": torch.tensor(lengths, device=device)}
        for is_causal in (False, True):
            assert_parity("attention=triton", attention_kernel.attention, attention, {**case, "is_causal": is_causal})


def test_attention_ignores_whatever_lies_beyond_a_sequence(device):
    q, k, v = (torch.randn(2, 100, 1, 64, device=device) for _ in range(3))
    lengths = torch.tensor([70, 100], device=device)
    clean = attention_kernel.attention(q, k, v, lengths)
    k[0, 70:], v[0, 70:] = float("nan"), float("inf")
    assert torch.equal(attention_kernel.attention(q, k, v, lengths), clean)


def test_a_sequence_attends_alike_alone_and_in_a_batch_of_the_same_tile(device):
    q, k, v = (torch.randn(3, 80, heads, 64, device=device) for heads in (6, 2, 2))
    lengths = torch.tensor([80, 33, 64], device=device)
    together = attention_kernel.attention(q, k, v, lengths)
    for b in range(3):
        alone = attention_kernel.attention(q[b : b + 1], k[b : b + 1], v[b : b + 1], lengths[b : b + 1])
        assert torch.equal(alone[0], together[b])


def test_tiles_cover_every_length_within_the_limits():
    for architecture, limit in ((80, 101_376), (86, 101_376), (90, 232_448), (100, 232_448), (120, 101_376)):
        for K in HEAD_WIDTHS:
            for T in (1, 2, 17, 123, 1024, 8192):
                for groups in (1, 8, 64, 4096):
                    config = attention_kernel.launch_config(4 * T, groups, K, 2, architecture)
                    block_m, block_n, block_k = (config[name] for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K"))
                    assert block_k >= K
                    assert min(block_m, block_n, block_k) >= 16
                    # The queries, and keys and values of every stage; mma.sync holds one stage in registers.
                    stages = config["num_stages"] - (architecture not in range(90, 120))
                    assert 2 * block_k * (block_m + 2 * block_n * stages) <= limit
    for D in (1, 123, 576, 4096, norm_kernel.MAX_WIDTH):
        assert D <= norm_kernel.launch_config(D)["BLOCK_D"] < 2 * D + 1
    assert rotary_kernel.launch_config(48)["BLOCK_HALF"] == 64
    assert swiglu_kernel.launch_config(14336)["BLOCK_F"] == swiglu_kernel.MAX_BLOCK


def test_a_width_no_tile_holds_is_refused_with_the_way_out(device):
    wide = torch.zeros(1, 1, 1, 256, device=device)
    with pytest.raises(ValueError, match=r"head width is 256, expected at most 128\. Use --ops attention=sdpa"):
        attention_kernel.attention(wide, wide, wide)
    row = torch.zeros(1, norm_kernel.MAX_WIDTH + 1, device=device)
    with pytest.raises(ValueError, match=r"Use --ops add_rmsnorm=reference"):
        norm_kernel.add_rmsnorm(row, None, row[0])


def test_a_model_on_triton_kernels_equals_the_reference(tmp_path, device):
    make_tiny(tmp_path, family="smollm2", tie=True, shards=1)
    checkpoint = open_checkpoint(tmp_path)
    ids, lengths = torch.arange(2 * 21).view(2, 21).to(device), torch.tensor([21, 9], device=device)
    outputs = []
    for choice in ("reference", "triton"):
        model = Transformer.from_tensors(checkpoint.facts, checkpoint.tensors(), select_ops(choice, device)).to(device)
        outputs.append(model(ids, lengths))
    for b, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(outputs[1][b, :length], outputs[0][b, :length], rtol=1e-5, atol=1e-5)


def test_the_package_imports_without_triton():
    # Setting a module to None makes its import fail, as on a machine without it.
    program = "import sys; sys.modules['triton'] = None; from lad_engine.ops import select_ops; print(select_ops('auto', 'cpu').table())"
    done = subprocess.run([sys.executable, "-c", program], env=dict(os.environ), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "triton" not in done.stdout
