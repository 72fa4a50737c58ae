"""The training noise: its definition step by step, its marginals, and its independence of everything but the example."""

from __future__ import annotations

import pytest
import torch

from lad_engine.errors import ConfigError
from lad_engine.kernels.random.reference import CORRUPT_DUPLICATE, CORRUPT_LEVEL, CORRUPT_MASK, CORRUPT_SPAN, CORRUPT_SWAP, uniform
from lad_engine.kernels.structured_noise.reference import VARIANTS, structured_noise
from lad_engine.ops import select_ops
from lad_engine.training.config import TrainConfig
from lad_engine.training.objectives.lad import LadObjective
from lad_engine.training.objectives.objective import CleanBatch, Setting

MASK = 3


def one(tokens, variant, seed=5, step=0, start=0, level=None):
    ids = torch.tensor([tokens])
    arguments = (torch.tensor([start]), torch.tensor([len(tokens)]), torch.tensor([seed]), torch.tensor(step))
    return structured_noise(ids, *arguments, MASK, variant, level)[0][0].tolist()


def by_hand(answer, variant, seed, step):
    """The docstring of the op, one position at a time."""

    def draws(count, purpose):
        return uniform(torch.tensor([seed]), torch.arange(count), torch.tensor(step), purpose)[0]

    size, half, whole = len(answer), torch.tensor(0.5), torch.tensor(0.1)
    l0, l1, l2, l3 = draws(4, CORRUPT_LEVEL)
    zero = torch.zeros(())
    if variant == "paper":
        level, rate = (l2 if l1 < half else zero), l3 * 0.5
    elif variant == "code":
        level, rate = (l2 * 0.5 if l1 < half else zero), (l3 if size > 2 else zero)
        if l0 < whole:
            level, rate = torch.ones(()), zero
    else:
        level, rate = 0.001 + 0.999 * l2, (l3 * 0.5 if variant == "mixed" else zero)
    q = rate * 0.25
    state = [MASK if draw < level else token for token, draw in zip(answer, draws(size, CORRUPT_MASK), strict=True)]
    swap = draws(size, CORRUPT_SWAP)
    for i in range(size - 1):
        if swap[i] < q:
            state[i], state[i + 1] = state[i + 1], state[i]
    duplicate = draws(size, CORRUPT_DUPLICATE)
    left = [i for i in range(1, size) if duplicate[i] < q * 0.5 or (i == size - 1 and duplicate[i] < q)]
    before = list(state)
    for i in left:
        state[i] = before[i - 1]
    before = list(state)
    for i in range(size - 1):
        if duplicate[i] < q and i not in left:
            state[i] = before[i + 1]
    s0, s1, s2, s3 = draws(4, CORRUPT_SPAN)
    if s0 < q:
        count = min(1 + int(3 * s1), 3, size)
        start = min(int((size - count + 1) * s2), size - count)
        shift = min(int(8 * s3), 7) - 4
        shift += shift >= 0
        before = list(state)
        for i in range(start, start + count):
            if 0 <= i + shift < size:
                state[i + shift] = before[i]
    return state


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_equals_its_description(variant):
    for seed in range(25):
        for size in (1, 2, 3, 9):
            answer = list(range(10, 10 + size))
            assert one(answer, variant, seed, 4) == by_hand(answer, variant, seed, 4), (seed, size)


def test_a_run_of_swaps_carries_the_first_token_to_the_end():
    from lad_engine.kernels.structured_noise.reference import _swap

    hits = torch.tensor([[True, True, False, True, False]])
    assert _swap(torch.tensor([[0, 1, 2, 3, 4]]), hits, torch.tensor([5])).tolist() == [[1, 2, 0, 4, 3]]


def test_prompt_and_tail_stay_clean_and_the_answer_does_not_depend_on_where_it_starts():
    ids = torch.arange(100, 140).repeat(16, 1)
    start, lengths, seeds = torch.full((16,), 7), torch.full((16,), 30), torch.arange(16)
    noised, _ = structured_noise(ids, start, lengths, seeds, torch.tensor(1), MASK, "mixed")
    assert torch.equal(noised[:, :7], ids[:, :7])
    assert torch.equal(noised[:, 30:], ids[:, 30:])
    moved, _ = structured_noise(ids[:, 7:], start - 7, lengths - 7, seeds, torch.tensor(1), MASK, "mixed")
    assert torch.equal(noised[:, 7:], moved)
    assert not torch.equal(noised, ids)


def test_an_example_is_noised_alike_in_any_batch_and_anew_at_every_step():
    ids = torch.randint(10, 99, (8, 25))
    start, lengths, seeds = torch.arange(8), torch.full((8,), 25), torch.arange(8) * 977
    noised, level = structured_noise(ids, start, lengths, seeds, torch.tensor(3), MASK, "mixed")
    for b in (0, 5):
        row = slice(b, b + 1)
        alone, own = structured_noise(ids[row], start[row], lengths[row], seeds[row], torch.tensor(3), MASK, "mixed")
        assert torch.equal(alone[0], noised[b])
        assert own[0] == level[b]
    later, _ = structured_noise(ids, start, lengths, seeds, torch.tensor(4), MASK, "mixed")
    assert not torch.equal(later, noised)


def test_levels_and_rates_have_the_marginals_of_the_sources():
    count, width = 4000, 40
    ids = torch.arange(1000, 1000 + width).repeat(count, 1)
    rows = (torch.zeros(count, dtype=torch.int64), torch.full((count,), width), torch.arange(count), torch.tensor(0))

    def noise(variant, level=None):
        noised, f = structured_noise(ids, *rows, MASK, variant, level)
        return noised, f, (noised == MASK).float().mean().item()

    _, paper, share = noise("paper")
    assert (paper == 0).float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert share == pytest.approx(0.25, abs=0.02)
    _, code, share = noise("code")
    assert (code == 1).float().mean().item() == pytest.approx(0.1, abs=0.02)
    assert share == pytest.approx(0.1 + 0.9 * 0.125, abs=0.02)
    noised, level, share = noise("mask_only")
    assert level.mean().item() == pytest.approx(0.5, abs=0.02)
    assert share == pytest.approx(level.mean().item(), abs=0.01)
    assert ((noised == MASK) | (noised == ids)).all()
    assert noise("mask_only", 0.3)[2] == pytest.approx(0.3, abs=0.01)
    assert noise("mask_only", 1.0)[2] == 1.0
    # q = p/4 with mean 1/16: an EOS-free answer loses about 2 q of its places to swaps and q to copies.
    changed = (noise("paper", 0.0)[0] != ids).float().mean().item()
    assert 0.10 < changed < 0.25


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="variant is 'salt'"):
        one([10, 11], "salt")
    with pytest.raises(ValueError, match="expected \\[B, T\\]"):
        structured_noise(torch.zeros(2, 3, dtype=torch.int64), *(torch.zeros(1, dtype=torch.int64),) * 3, torch.tensor(0), MASK, "paper")


def test_a_share_of_the_answers_is_masked_whole_and_the_rest_is_as_without_it():
    ids = torch.randint(20, 90, (600, 12), generator=torch.Generator().manual_seed(3))
    start = torch.full((600,), 4)
    clean = CleanBatch(ids, start, torch.full_like(start, 10), torch.arange(600) + 5, torch.tensor(9), 0)

    def noised(share):
        config = TrainConfig(whole_mask_share=share, loss="answer")
        return LadObjective(Setting(config, select_ops("reference"), 7, 2)).draw(clean).ids

    plain, some = noised(0.0), noised(0.25)
    is_whole = (some[:, 4:] == 7).all(1) & (plain != some).any(1)
    # A binomial of 600 draws at 1/4; those the paper's noise masked whole by itself are not seen.
    assert abs(int(is_whole.sum()) - 150) < 4.5 * (600 * 0.25 * 0.75) ** 0.5
    assert torch.equal(plain[~is_whole], some[~is_whole]) and torch.equal(some[:, :4], ids[:, :4])
    assert (noised(1.0)[:, 4:] == 7).all()
    with pytest.raises(ConfigError, match=r"whole_mask_share is 0\.5, which objective masked does not read"):
        TrainConfig(objective="masked", whole_mask_share=0.5)


def test_a_share_of_the_answers_is_seen_as_a_decode_in_blocks_sees_them():
    ids = torch.randint(20, 90, (600, 20), generator=torch.Generator().manual_seed(4))
    start, first_eos = torch.full((600,), 4), torch.full((600,), 15)
    clean = CleanBatch(ids, start, first_eos, torch.arange(600) + 5, torch.tensor(9), 0)

    def drawn(share):
        config = TrainConfig(block_share=share, block_length=5, loss="answer", predicts_next_token=False)
        return LadObjective(Setting(config, select_ops("reference"), 7, 2)).draw(clean)

    plain, blocks = drawn(0.0), drawn(1.0)
    # Positions 4 to 15 touch the blocks 4-8, 9-13 and 14-18; only one of them counts, and the tail after the last block never does.
    counts = torch.zeros(600, 20, dtype=torch.bool).index_put_((blocks.row, blocks.position), torch.tensor(True))
    which = (counts.long().argmax(1) - 4) // 5
    for block in range(3):
        rows = which == block
        begin = 4 + 5 * block
        assert abs(int(rows.sum()) - 200) < 4.5 * (600 * 2 / 9) ** 0.5
        assert counts[rows, begin : begin + 5].all() and counts[rows].sum() == 5 * rows.sum()
        assert torch.equal(blocks.ids[rows, :begin], ids[rows, :begin]) and (blocks.ids[rows, begin + 5 :] == 7).all()
        noise, seen = plain.ids[rows, begin : begin + 5], blocks.ids[rows, begin : begin + 5]
        hides = (noise == 7).any(1)
        assert 20 < int(hides.sum()) < len(hides) - 20
        assert torch.equal(seen[hides], noise[hides]) and (seen[~hides] == 7).all()
    some = drawn(0.25).ids
    is_plain = (some == plain.ids).all(1)
    assert abs(int((~is_plain).sum()) - 150) < 4.5 * (600 * 0.25 * 0.75) ** 0.5
    assert torch.equal(some[~is_plain], blocks.ids[~is_plain])
    with pytest.raises(ConfigError, match=r"block_share is 0\.5 with loss \"mask_only\""):
        TrainConfig(block_share=0.5, loss="mask_only", corruption="mask_only")
    with pytest.raises(ConfigError, match="block_length is 0, expected 1 or more"):
        TrainConfig(block_length=0)
