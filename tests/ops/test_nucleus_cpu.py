"""The C++ nucleus over the whole vocabulary chooses what a sort would: random shapes, temperatures, ties, both crossing rules."""

from __future__ import annotations

import pytest
import torch

from lad_engine.kernels.choose_token.cases import rule_columns
from lad_engine.ops import load_op


@pytest.mark.parametrize("seed", range(40))
def test_a_nucleus_is_that_of_the_sorted_order(seed):
    op = load_op("choose_token")
    try:
        choose = op.implementation("cpu")
    except ImportError as error:
        pytest.skip(f"the C++ extension cannot be imported here: {error}")
    torch.manual_seed(seed)
    N, V = 6, int(torch.randint(2, 5000, ()))
    temperature, top_p = float(torch.rand(())) * 2 + 0.05, float(torch.rand(())) * 0.999
    case = rule_columns("cpu", N, V, max_top_k=0, top_k=0, top_p=top_p, temperature=temperature)
    case["logits"] = torch.randint(0, 4, (N, V)).float() if seed % 3 == 0 else torch.randn(N, V) * (float(torch.rand(())) * 8 + 0.01)
    case["drop_crossing"] = torch.rand(N) < 0.5
    if seed % 5 == 0:
        case["temperature"] = torch.where(torch.rand(N) < 0.5, 0.0, 1.0)
    token, confidence = choose(**case)
    wanted, sure = op.reference(**case)
    assert torch.equal(token, wanted)
    assert torch.allclose(confidence, sure, rtol=2e-5, atol=1e-7)
