"""Masked decoding captured on a GPU: replayed and looped steps give the tokens of the eager loop, for every layout."""

from __future__ import annotations

import pytest
from tiny_families import FAMILIES, MASK_ID, make_family

from lad_engine import Engine
from lad_engine.errors import CaptureError

pytestmark = pytest.mark.gpu

PROMPTS = ["the user is there", "an answer", "the sea and the sun"]
RULES = ("random", "origin", "confidence", "maskgit_plus", "topk_margin", "entropy", "transfer")


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("driver", ["replay", "loop"])
def test_captured_drivers_reveal_what_the_eager_loop_does(name, driver, tmp_path):
    folder = make_family(tmp_path, name)
    settings = {"device": "cuda", "dtype": "float32"}
    eager = Engine.load(folder, driver="eager", **settings)
    try:
        captured = Engine.load(folder, driver=driver, **settings)
    except CaptureError as error:
        pytest.skip(str(error))
    base = {"temperature": 0.9, "top_p": 0.9, "top_k": 0, "confidence": "kept", "block_length": None}
    for rule in RULES:
        params = [eager.sampling(**base, reveal=rule, max_new_tokens=10 + 3 * i, steps=6 + i, seed=i) for i in range(3)]
        wanted, got = eager.generate(PROMPTS, params), captured.generate(PROMPTS, params)
        assert [one.token_ids for one in got] == [one.token_ids for one in wanted], rule
        assert [one.nfe for one in got] == [one.nfe for one in wanted], rule
        assert all(MASK_ID not in one.token_ids for one in got)
