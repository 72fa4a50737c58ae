"""What parity cannot see of the decode kernels: slots nobody wrote, slots that must stay, and sensible launches."""

from __future__ import annotations

import pytest
import torch

from lad_engine.ops import load_op

pytest.importorskip("triton", reason="Triton is only published for Linux")
from lad_engine.kernels.decode_attention import triton_kernel as attention_launch
from lad_engine.kernels.few_row_linear import triton_kernel as linear_launch

OP = load_op("decode_attention")


def case(device: str) -> dict:
    return OP.cases(device, torch.float32)[1]


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_slots_nobody_wrote_are_not_read(device, backend):
    given = case(device)
    clean = OP.implementation(backend)(**{**given, "keys": given["keys"].clone(), "values": given["values"].clone()})
    for b, position in enumerate(given["positions"].tolist()):
        for cache in (given["keys"], given["values"]):
            cache[b, position:] = torch.nan
    assert torch.equal(OP.implementation(backend)(**given), clean)


@pytest.mark.parametrize("backend", ["reference", "sdpa", "triton"])
def test_only_the_new_slot_is_written(device, backend):
    given = case(device)
    before = {name: given[name].clone() for name in ("keys", "values")}
    OP.implementation(backend)(**given)
    for name, storage in before.items():
        changed = (given[name] != storage).flatten(2).any(2)
        wanted = torch.zeros_like(changed)
        wanted[torch.arange(len(wanted)), given["positions"].cpu()] = True
        assert torch.equal(changed, wanted), name


@pytest.mark.parametrize("backend", ["reference", "sdpa", "triton"])
def test_wrong_shapes_are_named(device, backend):
    given = case(device)
    with pytest.raises(ValueError, match="decode_attention: qkv, keys, values, positions are"):
        OP.implementation(backend)(**{**given, "positions": given["positions"][:1]})
    with pytest.raises(ValueError, match="decode_attention: cos is"):
        OP.implementation(backend)(**{**given, "cos": given["cos"][:4]})


def test_a_small_batch_is_split_over_the_gpu_and_a_large_one_is_not():
    def splits(**changes):
        return attention_launch.launch_config(**{"capacity": 2048, "groups": 8, "K": 128, "element_bytes": 2, **changes})["SPLITS"]

    assert splits() * 8 >= 132
    assert splits(groups=512) == 1
    assert splits(capacity=64) == 1


@pytest.mark.parametrize("outputs", [2048, 3072, 4096, 6144, 128256])
def test_a_linear_layer_has_enough_programs_and_loads_in_flight(outputs):
    config = linear_launch.launch_config(1, outputs, 4096, 2, is_gated=False)
    programs = -(-outputs // config["BLOCK_O"])
    tile_bytes = config["BLOCK_O"] * config["BLOCK_D"] * 2
    assert programs >= 2 * 132
    # Little's law: 4.3 TB/s times 0.8 us, over 132 multiprocessors, is 26 KB each.
    assert min(programs / 132, 8) * tile_bytes >= 26_000


def test_more_rows_than_few_and_a_lone_residual_are_refused():
    few = load_op("few_row_linear").reference
    with pytest.raises(ValueError, match="few_row_linear: x has 9 rows, expected at most 8"):
        few(torch.zeros(9, 4), torch.zeros(3, 4))
    with pytest.raises(ValueError, match="a residual is given without a norm"):
        few(torch.zeros(1, 4), torch.zeros(3, 4), residual=torch.zeros(1, 4))
    with pytest.raises(ValueError, match="the gated weight has 3 rows"):
        few(torch.zeros(1, 4), torch.zeros(3, 4), is_gated=True)
