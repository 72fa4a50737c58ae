"""What parity cannot see of the C++ attention: the ends of its blocks and panels, what lies in its room, and the library's route."""

from __future__ import annotations

import pytest
import torch

from lad_engine.kernels.packed_attention.reference import packed_attention as reference

cpu = pytest.importorskip("lad_engine._cpu", reason="the C++ extension is not built here")

from lad_engine.kernels.packed_attention import cpu_kernel  # noqa: E402

OURS = pytest.mark.skipif(not cpu.attends(), reason="this processor has no fused products; the library's are used")


def case_of(B, T, H, G, K, dtype=torch.float32, lengths=None):
    angles = torch.rand(T, K // 2) * 6
    qkv = torch.randn(B, T, H + 2 * G, K).to(dtype)
    seen = None if lengths is None else torch.tensor(lengths)
    return {"qkv": qkv, "cos": angles.cos(), "sin": angles.sin(), "query_heads": H, "kv_heads": G, "lengths": seen}


def assert_close(got, case):
    wide = reference(**{**case, "qkv": case["qkv"].float()})
    tolerance = 3e-6 if got.dtype == torch.float32 else 2e-2
    torch.testing.assert_close(got.float(), wide, rtol=0, atol=tolerance)


@OURS
@pytest.mark.parametrize("T", (1, 5, 23, 24, 25, 63, 64, 65, 130))
@pytest.mark.parametrize(("heads", "K"), (((3, 1), 64), ((4, 2), 6), ((2, 2), 80), ((2, 1), 128)), ids=str)
def test_every_end_of_a_block_and_a_panel(heads, K, T):
    case = case_of(1, T, *heads, K)
    assert_close(cpu_kernel.packed_attention(**case), case)


@OURS
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_keys_beyond_a_length_are_not_seen(dtype):
    case = case_of(3, 90, 6, 2, 16, dtype, [1, 64, 90])
    first = cpu_kernel.packed_attention(**case)
    for b, length in enumerate((1, 64, 90)):
        case["qkv"][b, length:, 6:] = 1e4
    assert torch.equal(cpu_kernel.packed_attention(**case)[0], first[0])
    assert torch.equal(cpu_kernel.packed_attention(**case)[1], first[1])
    # The only key gets all of the weight, up to the rounding of a share.
    alone = case["qkv"][0, 0, 8:].float().repeat_interleave(3, 0).expand(90, 6, 16)
    torch.testing.assert_close(first[0].float(), alone, rtol=1e-6 if dtype == torch.float32 else 1e-2, atol=1e-6)


@OURS
def test_what_lies_in_the_room_does_not_matter():
    case = case_of(2, 70, 4, 2, 80)
    tables, y = (case["cos"], case["sin"]), torch.empty(2, 70, 4, 80)
    room = torch.full((2 * cpu.attention_room(70, 2, 80),), torch.nan)
    cpu.packed_attention(case["qkv"], *tables, None, room, y, 1)
    assert_close(y, case)
    assert not room.isnan().any()


@OURS
def test_large_scores_neither_overflow_nor_lose_the_largest():
    case = case_of(1, 40, 2, 1, 32)
    case["qkv"] *= 40
    assert_close(
        cpu_kernel.packed_attention(**case) / 40, {**case, "qkv": torch.cat((case["qkv"][:, :, :3], case["qkv"][:, :, 3:] / 40), 2)}
    )


def test_heads_may_be_strided():
    case = case_of(2, 30, 4, 2, 16)
    wide = torch.zeros(2, 30, 10, 24)
    wide[:, :, :8, :16] = case["qkv"]
    assert torch.equal(cpu_kernel.packed_attention(**{**case, "qkv": wide[:, :, :8, :16]}), cpu_kernel.packed_attention(**case))


@OURS
def test_any_number_of_threads_gives_the_same_bits():
    case = case_of(2, 75, 6, 2, 64, torch.bfloat16, [75, 30])
    tables, seen = (case["cos"], case["sin"]), case["lengths"]
    found = []
    for threads in (1, 2, 5):
        y, room = torch.empty(2, 75, 6, 64, dtype=torch.bfloat16), torch.empty(2 * cpu.attention_room(75, 2, 64))
        cpu.packed_attention(case["qkv"], *tables, seen, room, y, threads)
        found.append(y)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("multiplies", (False, True))
def test_the_library_multiplies_where_ours_cannot_or_need_not(dtype, multiplies, monkeypatch):
    monkeypatch.setattr(cpu_kernel, "attends", lambda: False)
    monkeypatch.setattr(cpu_kernel, "multiplies_bfloat16", lambda: multiplies)
    case = case_of(2, 33, 4, 2, 16, dtype, [33, 20])
    assert_close(cpu_kernel.packed_attention(**case), case)


@OURS
def test_what_does_not_fit_is_refused_by_name():
    case = case_of(1, 8, 2, 1, 16)
    with pytest.raises(ValueError, match=r"packed_attention: room is \(5,\), expected \(\d+,\)\."):
        cpu.packed_attention(case["qkv"], case["cos"], case["sin"], None, torch.empty(5), torch.empty(1, 8, 2, 16), 1)
