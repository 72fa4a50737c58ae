"""What parity cannot see of the C++ token scan: where blocks and chunks end, ties across them, and draws over whole rows."""

from __future__ import annotations

import pytest
import torch

from lad_engine.kernels.choose_token.cases import rule_columns
from lad_engine.kernels.choose_token.reference import choose_token as reference

cpu = pytest.importorskip("lad_engine._cpu", reason="the C++ extension is not built here")

from lad_engine.kernels.choose_token.cpu_kernel import MAX_CANDIDATES, choose_token  # noqa: E402
from lad_engine.kernels.lm_head import cpu_kernel as head  # noqa: E402

WIDTHS = (1, 15, 16, 17, 127, 128, 129, 1023, 1024, 1025, 3000)


def both(logits, **rule):
    columns = rule_columns("cpu", *logits.shape, **rule)
    return choose_token(logits, **columns), reference(logits, **columns)


@pytest.mark.parametrize("V", WIDTHS)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_every_width_of_a_last_block(V, dtype):
    logits = torch.randn(9, V).to(dtype)
    for rule in ({"max_top_k": min(3, V), "top_k": 3}, {"samples_all": True, "top_k": 0}, {"max_top_k": 0, "top_k": 0, "top_p": 0.7}):
        (token, confidence), (wanted, wanted_confidence) = both(logits, **rule)
        assert torch.equal(token, wanted)
        torch.testing.assert_close(confidence, wanted_confidence)


def test_ties_across_blocks_go_to_the_lower_id():
    logits = torch.zeros(4, 5000)
    logits[:, [4999, 3000, 1024, 1023]] = 2.0
    greedy = {**rule_columns("cpu", 4, 5000), "bias_values": torch.zeros(4, 2)}
    assert choose_token(logits, **greedy)[0].tolist() == reference(logits, **greedy)[0].tolist() == [1023] * 4
    for u, place in ((0.1, 1023), (0.4, 1024), (0.6, 3000), (0.9, 4999)):
        columns = {**rule_columns("cpu", 4, 5000, max_top_k=4, top_k=4), "uniforms": torch.full((4,), u), "bias_values": torch.zeros(4, 2)}
        assert choose_token(logits, **columns)[0].tolist() == [place] * 4


def test_a_bias_given_twice_counts_twice():
    columns = rule_columns("cpu", 2, 300)
    columns |= {"bias_ids": torch.tensor([7, 7]), "bias_values": torch.full((2, 2), 2.0)}
    logits = torch.zeros(2, 300)
    logits[:, 9] = 3.0
    assert choose_token(logits, **columns)[0].tolist() == [7, 7]


def test_a_long_list_of_candidates_is_ordered_like_a_short_one():
    logits = torch.randn(6, 4000)
    long, short = MAX_CANDIDATES + 1, MAX_CANDIDATES
    for top_k in (long, short):
        (token, confidence), (wanted, wanted_confidence) = both(logits, max_top_k=top_k, top_k=top_k, temperature=1.5)
        assert torch.equal(token, wanted)
        torch.testing.assert_close(confidence, wanted_confidence)


def test_top_p_without_top_k_reaches_as_far_as_it_must():
    # A flat row: nine tenths of the mass need nine tenths of the ids.
    logits = torch.randn(5, 4000) * 1e-3
    (token, confidence), (wanted, wanted_confidence) = both(logits, max_top_k=0, top_k=0, top_p=0.9)
    assert torch.equal(token, wanted)
    torch.testing.assert_close(confidence, wanted_confidence)


def test_draws_follow_the_distribution():
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0, 0.5]]).expand(20000, 5).contiguous()
    columns = {**rule_columns("cpu", 20000, 5, top_k=0, samples_all=True), "bias_values": torch.zeros(20000, 2)}
    token, _ = choose_token(logits, **columns)
    share = torch.bincount(token, minlength=5) / 20000
    # Standard error at most 0.0036.
    assert (share - torch.softmax(logits[0], 0)).abs().max() < 0.015


def test_logits_that_are_all_nan_give_a_nan_confidence():
    columns = rule_columns("cpu", 2, 300)
    _, confidence = choose_token(torch.full((2, 300), torch.nan), **columns)
    assert confidence.isnan().all()


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_chunks_of_the_vocabulary_give_the_bits_of_whole_rows(dtype):
    numbers = torch.Generator().manual_seed(2)
    logits = torch.randn(7, 5000, generator=numbers).to(dtype)
    columns = rule_columns("cpu", 7, 5000, max_top_k=3, top_k=3)
    rule = [columns[name] for name in ("uniforms", "temperature", "top_k", "top_p", "drop_crossing", "full_confidence", "bias_ids")]
    token, confidence = choose_token(logits, **columns)
    for step in (1024, 2048):
        scan = cpu.TokenScan("lm_head", *rule, columns["bias_values"].contiguous(), 5000, 3)
        for start in range(0, 5000, step):
            scan.scan(logits[:, start : start + step].contiguous(), start, 1)
        again, confidence_again = torch.empty(7, dtype=torch.int64), torch.empty(7)
        scan.draw(again, confidence_again)
        assert torch.equal(token, again)
        assert torch.equal(confidence, confidence_again)


def test_chunks_are_whole_blocks_and_small():
    for N in (1, 16, 128, 256, 5000):
        columns = head.launch_config(N, 49152)["columns"]
        assert columns % cpu.SCAN_BLOCK == 0
        assert N * columns <= max(head.CHUNK_VALUES, N * cpu.SCAN_BLOCK)


def test_what_does_not_fit_is_refused_by_name():
    columns = rule_columns("cpu", 2, 300)
    with pytest.raises(ValueError, match=r"choose_token: top_k is torch.int32, expected torch.int64\."):
        choose_token(torch.zeros(2, 300), **{**columns, "top_k": columns["top_k"].int()})
    with pytest.raises(ValueError, match=r"choose_token: bias_ids is 300, expected ids of the vocabulary\."):
        choose_token(torch.zeros(2, 300), **{**columns, "bias_ids": torch.tensor([1, 300])})
    with pytest.raises(ValueError, match="a chunk begins inside a block"):
        rule = [columns[name] for name in ("uniforms", "temperature", "top_k", "top_p", "drop_crossing", "full_confidence", "bias_ids")]
        cpu.TokenScan("lm_head", *rule, columns["bias_values"].contiguous(), 300, 1).scan(torch.zeros(2, 10), 5, 1)
