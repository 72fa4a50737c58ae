"""What parity cannot see of the Triton choice: large k, ties across tiles and zeros, forbidden stretches, paths that must agree."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="Triton is only published for Linux")

from lad_engine.kernels.choose_token.reference import choose_token as reference
from lad_engine.kernels.choose_token.triton_kernel import MAX_CANDIDATES, MAX_SPLITS, choose_config, choose_token, launch_config


def call(function, logits, *, temperature=1.0, top_k=0, top_p=1.0, drop=False, full=False, max_top_k=None, samples_all=False, u=None):
    """Fill the columns of a rule from numbers or lists."""
    N = logits.shape[0]

    def column(value, dtype=torch.float32):
        return torch.tensor(value, dtype=dtype, device=logits.device).expand(N)

    u = torch.rand(N, generator=torch.Generator().manual_seed(1)).clamp(1e-6, 1 - 1e-6) if u is None else u
    return function(
        logits,
        u.to(logits.device),
        column(temperature),
        column(top_k, torch.int64),
        column(top_p),
        column(drop, torch.bool),
        column(full, torch.bool),
        torch.tensor([3, 0, 3], device=logits.device),
        torch.tensor([0.5, -torch.inf, 0.25], device=logits.device).expand(N, -1),
        max_top_k=max_top_k if max_top_k is not None else max(top_k) if isinstance(top_k, list) else top_k,
        samples_all=samples_all,
    )


def assert_same(logits, **rule):
    token, confidence = call(choose_token, logits, **rule)
    wanted_token, wanted_confidence = call(reference, logits, **rule)
    assert token.tolist() == wanted_token.tolist()
    torch.testing.assert_close(confidence, wanted_confidence, rtol=4e-6, atol=1e-12)
    return token, confidence


def test_every_rule_of_a_mixed_batch_equals_the_reference(device):
    rules = [(t, k, p, d) for t in (0.0, 0.6) for k in (1, 3, 12) for p in (0.0, 0.4, 1.0) for d in (False, True)]
    temperature, top_k, top_p, drop = (list(column) for column in zip(*rules, strict=True))
    # Halves of integers tie often, zero among them; bias_ids names one id twice.
    logits = torch.randint(-8, 8, (len(rules), 60), device=device).float() / 2
    full = [n % 5 == 0 for n in range(len(rules))]
    assert_same(logits, temperature=temperature, top_k=top_k, top_p=top_p, drop=drop, full=full)


def test_large_k_and_top_p_over_the_vocabulary_equal_the_reference(device):
    logits = torch.randint(-20, 20, (6, 700), device=device).float() / 4
    rule = {"top_k": [300, 699, 0, 0, 1000, 1], "top_p": [1.0, 0.5, 0.0, 0.9, 0.7, 1.0], "drop": [False, False, False, True, True, False]}
    assert_same(logits, **rule, temperature=[1.0, 0.7, 1.0, 1.5, 0.0, 1.0], full=[False, True] * 3, max_top_k=0)


def test_top_1024_of_several_tiles_equals_the_reference(device):
    logits = torch.randn(2, 3000, device=device) * 2
    assert_same(logits, top_k=[1024, 1023], max_top_k=1024, u=torch.tensor([0.4, 0.9999]))


def test_equal_scores_go_to_the_lower_id_across_tiles_and_both_zeros(device):
    V = 9000
    for zeros in (torch.zeros(1, V), torch.zeros(1, V).neg(), torch.arange(V)[None] % 2 * -0.0):
        logits = zeros.to(device).repeat(3, 1)
        u = torch.tensor([0.01, 0.7, 0.99])
        # Ids 3 (bias 0.75) and 1, 2, 4; id 0 is forbidden.
        token, _ = assert_same(logits, top_k=4, u=u)
        assert set(token.tolist()) <= {1, 2, 3, 4}
        assert call(choose_token, logits, top_k=1)[0].tolist() == [3, 3, 3]
    # Where everything ties, a large k holds the lowest ids.
    logits = torch.zeros(2, 3000, device=device)
    token, _ = assert_same(logits, top_k=500, max_top_k=500, u=torch.tensor([1e-6, 1 - 1e-6]))
    assert token.tolist() == [3, 500]


@pytest.mark.parametrize("max_top_k", [1, 5])
def test_a_forbidden_stretch_has_no_mass_and_no_nan(device, max_top_k):
    V = 24000
    stretch = launch_config(V)["split_length"]
    logits = torch.randn(2, V, device=device)
    logits[0, :stretch] = -torch.inf
    logits[1, 7:] = -torch.inf
    assert_same(logits, top_k=max_top_k, full=True)
    # One token left: fewer than k, and the only one an unfiltered draw can give.
    logits[:, 1:] = -torch.inf
    logits[:, 20000] = 2.0
    for rule in ({"top_k": max_top_k}, {"samples_all": True, "max_top_k": max_top_k}):
        token, confidence = assert_same(logits, **rule, u=torch.tensor([1e-7, 1 - 6e-8]))
        assert token.tolist() == [20000, 20000]
        assert confidence.tolist() == [1.0, 1.0]


def test_an_unfiltered_draw_crosses_tiles_in_the_order_of_ids(device):
    assert_same(torch.randn(4, 9000, device=device), samples_all=True, max_top_k=1, u=torch.tensor([1e-6, 0.4, 0.8, 1 - 1e-6]))


def test_a_row_has_the_same_bits_whatever_the_batch_asks_for(device):
    logits = torch.randn(3, 300, device=device)
    rule = {"top_k": 5, "top_p": 0.8, "full": [True, False, True]}
    alone = call(choose_token, logits, **rule)
    others = [call(choose_token, logits, **rule, max_top_k=k, samples_all=True) for k in (12, MAX_CANDIDATES + 1)]
    single = [call(choose_token, logits[n : n + 1], **{**rule, "full": n != 1}, u=_uniform(n)) for n in range(3)]
    for other in (*others, tuple(torch.cat(column) for column in zip(*single, strict=True))):
        assert torch.equal(alone[0], other[0])
        assert torch.equal(alone[1], other[1])


def _uniform(n):
    return torch.rand(3, generator=torch.Generator().manual_seed(1)).clamp(1e-6, 1 - 1e-6)[n : n + 1]


def test_wrong_shapes_are_named_and_no_rows_are_no_work(device):
    logits = torch.randn(2, 30, device=device)
    with pytest.raises(ValueError, match="logits is"):
        call(choose_token, logits[0][None, :, None], top_k=1)
    token, confidence = call(choose_token, logits[:0], top_k=1)
    assert token.shape == confidence.shape == (0,)


def test_a_launch_depends_on_the_vocabulary_alone_and_covers_it():
    for V in (2, 123, 4096, 4097, 49152, 128256, 262144, 2_000_000):
        config = launch_config(V)
        assert config["splits"] * config["split_length"] >= V > (config["splits"] - 1) * config["split_length"]
        assert config["split_length"] % config["BLOCK"] == 0
        assert config["splits"] <= MAX_SPLITS
        assert choose_config(config["splits"], MAX_CANDIDATES)["num_warps"] <= 8
