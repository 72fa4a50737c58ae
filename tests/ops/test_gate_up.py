"""What parity on its own cases cannot see of gate_up: tile edges, L2 groups, rounding, rows beside each other, the model's choice."""

from __future__ import annotations

import dataclasses

import pytest
import torch

pytest.importorskip("triton", reason="Triton is only published for Linux")

from lad_engine.kernels.gate_up import OP
from lad_engine.kernels.gate_up import triton_kernel as kernel
from lad_engine.kernels.gate_up.reference import gate_up
from lad_engine.model.transformer import Transformer
from lad_engine.model.weights import open_checkpoint
from lad_engine.ops import select_ops
from parity import assert_parity
from tiny_checkpoint import make_tiny


def make(device: str, rows: int, D: int, F: int, dtype: torch.dtype = torch.float32) -> dict:
    weight = torch.randn(2 * F, D, device=device) * D**-0.5
    return {"x": torch.randn(rows, D, device=device).to(dtype), "weight": weight.to(dtype)}


@pytest.mark.parametrize("tile", kernel.candidates(7, 64, 64, 2, 90), ids=lambda tile: "x".join(map(str, tile.values())))
def test_every_tile_holds_at_its_edges(tile, device):
    assert_parity("gate_up=triton", OP.configured("triton", tile), gate_up, make(device, 65, 80, 130))


def test_blocks_of_rows_beyond_one_group_are_all_computed(device, monkeypatch):
    monkeypatch.setattr(kernel, "GROUP_M", 2)
    tile = {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 32, "num_warps": 4, "num_stages": 2}
    assert_parity("gate_up=triton", kernel.configured(tile), gate_up, make(device, 75, 32, 40))


def test_sixteen_bit_results_are_rounded_where_the_reference_rounds(device):
    case = make(device, 33, 128, 96, torch.float16)
    assert_parity("gate_up=triton", kernel.gate_up, gate_up, case)
    # A missing rounding would change a quarter of the values; another order of a sum changes few.
    assert (kernel.gate_up(**case) == gate_up(**case)).float().mean() > 0.9


def test_fixed_tiles_give_a_row_the_same_bits_whatever_is_beside_it(device):
    case = make(device, 150, 144, 70)
    whole = kernel.invariant(**case)
    for start, stop in ((0, 1), (63, 66), (149, 150)):
        assert torch.equal(kernel.invariant(case["x"][start:stop], case["weight"]), whole[start:stop])


def test_without_tma_fixed_tiles_take_two_steps_and_any_width(device, monkeypatch):
    monkeypatch.setattr(kernel, "architecture_of", lambda _: 80)
    monkeypatch.setattr(kernel, "_launch", lambda *_: pytest.fail("read through a descriptor"))
    case = make(device, 40, 123, 70)
    assert_parity("gate_up=triton", kernel.invariant, gate_up, case)
    assert torch.equal(kernel.invariant(case["x"][5:6], case["weight"]), kernel.invariant(**case)[5:6])


def test_rows_no_descriptor_takes_are_refused_with_the_way_out(device):
    case = make(device, 2, 123, 8)
    with pytest.raises(ValueError, match=r"rows are 492 bytes, expected a multiple of 16\. Use --ops gate_up=cublas\."):
        kernel.gate_up(**case)
    with pytest.raises(ValueError, match=r"gate_up: weight is \(16, 123\), expected \(2F, 64\)"):
        gate_up(torch.zeros(2, 64, device=device), case["weight"])


def test_a_layer_fuses_its_plain_weight_and_steps_back_for_an_adapter(tmp_path):
    make_tiny(tmp_path, family="llama", tie=True)
    checkpoint = open_checkpoint(tmp_path)
    calls = []

    def counted(x, weight):
        calls.append(weight.shape)
        return gate_up(x, weight)

    ops = dataclasses.replace(select_ops("reference"), gate_up=counted)
    model = Transformer.from_tensors(checkpoint.facts, checkpoint.tensors(), ops)
    ids = torch.arange(12)[None]
    plain = model(ids)
    assert len(calls) == model.facts.layers
    projection, start, stop = model.projection("model.layers.0.mlp.up_proj")
    a, b = torch.randn(2, model.facts.width), torch.zeros(stop - start, 2)
    projection.attach(a, b, 1.0, start, stop)
    calls.clear()
    torch.testing.assert_close(model(ids), plain)
    assert len(calls) == model.facts.layers - 1
