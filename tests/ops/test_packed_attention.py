"""What parity on its own cases cannot see of packed attention: tile edges, key ratios, both ways of rotation, fixed tiles, the choice."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="Triton is only published for Linux")

from lad_engine.kernels.packed_attention import OP
from lad_engine.kernels.packed_attention import triton_kernel as kernel
from lad_engine.kernels.packed_attention.cases import _tables
from lad_engine.kernels.packed_attention.reference import packed_attention
from lad_engine.kernels.packed_attention.sdpa_kernel import packed_attention as by_library
from parity import assert_parity

LIMITS = ((80, 101_376), (86, 101_376), (90, 232_448), (100, 232_448), (120, 101_376))


def make(device: str, B: int, T: int, H: int, G: int, K: int, lengths: list[int] | None = None, dtype=torch.float32) -> dict:
    cos, sin = (table.to(device) for table in _tables(T, K, 10000.0))
    qkv = torch.randn(B, T, H + 2 * G, K, device=device).to(dtype)
    limits = None if lengths is None else torch.tensor(lengths, device=device)
    return {"qkv": qkv, "cos": cos, "sin": sin, "query_heads": H, "kv_heads": G, "lengths": limits}


@pytest.mark.parametrize("H,G,K", [(1, 1, 96), (3, 1, 64), (4, 1, 128), (8, 1, 64), (6, 2, 96)])
def test_every_ratio_of_heads_and_every_width(H, G, K, device):
    for dtype in (torch.float32, torch.float16):
        case = make(device, 2, 37, H, G, K, [37, 5], dtype)
        assert_parity("packed_attention=triton", kernel.packed_attention, packed_attention, case)
        assert_parity("packed_attention=sdpa", by_library, packed_attention, case)


@pytest.mark.parametrize("rotates_keys", [False, True], ids=["keys rotated before", "keys rotated inside"])
@pytest.mark.parametrize("tile", [(16, 64, 4), (64, 64, 4), (128, 128, 8)])
def test_lengths_on_and_beside_the_edge_of_a_tile(tile, rotates_keys, device):
    case = make(device, 4, 129, 1, 1, 64, [1, 64, 128, 129])
    own = kernel.launch_config(4, 129, 1, 1, 64, 2, 90)
    names = ("BLOCK_M", "BLOCK_N", "num_warps")
    config = {**own, **dict(zip(names, tile, strict=True)), "num_stages": 1, "ROTATES_KEYS": rotates_keys}
    assert_parity("packed_attention=triton", kernel.configured(config), packed_attention, case)


def test_whatever_lies_beyond_a_sequence_is_never_seen(device):
    case = make(device, 2, 100, 2, 1, 64, [70, 100])
    functions = (kernel.packed_attention, kernel.invariant)
    clean = [function(**case) for function in functions]
    case["qkv"][0, 70:, 2:] = float("nan")
    for function, wanted in zip(functions, clean, strict=True):
        assert torch.equal(function(**case), wanted)


@pytest.mark.parametrize("K", [64, 96])
def test_fixed_tiles_give_a_row_the_same_bits_in_any_batch_and_bucket(K, device):
    lengths = [200, 33, 64]
    case = make(device, 3, 200, 3, 1, K, lengths)
    together = kernel.invariant(**case)
    for b, length in enumerate(lengths):
        for bucket in {length, min(200, length + 31)}:
            alone = {**case, "qkv": case["qkv"][b : b + 1, :bucket], "cos": case["cos"][:bucket], "sin": case["sin"][:bucket]}
            limits = torch.tensor([length], device=device)
            assert torch.equal(kernel.invariant(**{**alone, "lengths": limits})[0, :length], together[b, :length])
        exact = {**alone, "qkv": case["qkv"][b : b + 1, :length], "cos": case["cos"][:length], "sin": case["sin"][:length]}
        assert torch.equal(kernel.invariant(**{**exact, "lengths": None})[0], together[b, :length])
    assert_parity("packed_attention=triton", kernel.invariant, packed_attention, case)


def test_the_fixed_tile_depends_on_width_and_dtype_only():
    import inspect

    assert list(inspect.signature(kernel.fixed_config).parameters) == ["K", "element_bytes", "architecture"]
    chosen = {tuple(kernel.launch_config(B, T, 32, 8, 64, 2, 90).items()) for B in (1, 8) for T in (1, 256, 1024)}
    assert len(chosen) > 1, "the free formula follows the shape, or fixing it would mean nothing"


def test_keys_are_rotated_before_where_they_are_many_and_inside_where_few():
    assert kernel.launch_config(1, 256, 32, 8, 64, 2, 90)["ROTATES_KEYS"]
    for B, T in ((1, 4096), (32, 256)):
        assert not kernel.launch_config(B, T, 32, 8, 64, 2, 90)["ROTATES_KEYS"]
    assert not kernel.launch_config(1, 256, 32, 8, 64, 2, 80)["ROTATES_KEYS"]


def test_tiles_cover_every_length_within_the_limits():
    for architecture, limit in LIMITS:
        for K in (16, 64, 96, 128):
            for T in (1, 2, 17, 123, 1024, 8192):
                for B in (1, 8, 64):
                    config = kernel.launch_config(B, T, 32, 8, K, 2, architecture)
                    assert 2 * config["BLOCK_HALF"] == config["BLOCK_K"] >= K
                    assert min(config[name] for name in ("BLOCK_M", "BLOCK_N", "BLOCK_HALF")) >= 16
                    # Queries, and keys, values and fp32 tables of every stage; mma.sync holds one stage in registers.
                    stages = config["num_stages"] - (architecture not in range(90, 120))
                    per_key = 2 + 2 * config["ROTATES_KEYS"]
                    assert 2 * config["BLOCK_K"] * (config["BLOCK_M"] + per_key * config["BLOCK_N"] * stages) <= limit


def test_what_cannot_be_computed_is_refused_with_the_way_out(device):
    case = make(device, 1, 4, 2, 1, 64)
    with pytest.raises(ValueError, match=r"qkv is \(1, 4, 4, 64\), expected \[B, T, 3 \+ 2 x 1, K\]"):
        packed_attention(**{**case, "query_heads": 3})
    for function in (packed_attention, by_library, kernel.packed_attention):
        with pytest.raises(ValueError, match=r"cos is \(3, 32\), sin \(4, 32\), expected \(4, 32\)"):
            function(**{**case, "cos": case["cos"][:3]})
    with pytest.raises(ValueError, match=r"head width is 256, expected an even one of at most 128\. Use --ops packed_attention=sdpa"):
        kernel.packed_attention(**make(device, 1, 2, 1, 1, 256))
    with pytest.raises(ValueError, match=r"packed_attention=triton: config names BLOCK_Q, expected BLOCK_HALF, BLOCK_K"):
        kernel.configured({"BLOCK_Q": 64})


def test_every_candidate_of_a_shape_is_a_launch_configuration(device):
    candidates = kernel.candidates(1, 256, 9, 3, 64, 2, 90)
    assert candidates[0] == kernel.launch_config(1, 256, 9, 3, 64, 2, 90)
    assert all(OP.configured("triton", config) for config in candidates)
    assert len({tuple(sorted(config.items())) for config in candidates}) == len(candidates)


def test_gradients_flow_through_the_reference_and_the_library():
    for function in (packed_attention, by_library):
        case = make("cpu", 1, 9, 2, 1, 16)
        case["qkv"].requires_grad_()
        function(**case).square().sum().backward()
        assert (case["qkv"].grad.abs().amax(dim=(0, 1, 3)) > 0).all()
