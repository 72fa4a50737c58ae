"""What a request may not ask for is refused when it is submitted, in the words of Engine.generate, and never on the device thread."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from backend_kit import serve, tiny_engine
from tiny_families import make_family
from tiny_simplex import make_tess

from lad_engine import Engine, SamplingParams
from lad_engine.backend import AsyncEngine
from lad_engine.contracts import Canvas
from lad_engine.errors import ConfigError, RequestError
from lad_engine.text.prompts import Prompt
from tiny_latent import make_tiny_latent

DRAFTED, FILLED = Prompt("hello", draft="the user is in"), Prompt("hello", infill="the [[2]] is")
# family -> (prompt, settings over the family's defaults, error, its first words)
CONFLICTS = {
    "lad": [
        ("hello", {"steps": 4, "tokens_per_step": 2, "max_new_tokens": 20}, RequestError, "steps: 4 steps of 2 tokens show 8 positions"),
        (DRAFTED, {"max_new_tokens": 40}, RequestError, "draft: noise_start is 1"),
        (DRAFTED, {"max_new_tokens": 2, "noise_start": 0.3}, RequestError, "draft: it is"),
        ("word " * 200, {}, RequestError, "prompt: .* expected at most 512"),
        ("hello", {"suppress_tokens": tuple(range(320))}, ConfigError, "suppress_tokens: every token is suppressed"),
    ],
    "masked": [
        (DRAFTED, {"max_new_tokens": 14}, RequestError, "canvas 0: no position is hidden"),
        ("hello", {"reveal": "transfer", "block_length": 4, "max_new_tokens": 16, "steps": 3}, RequestError, "steps is 3"),
    ],
    "simplex": [
        (DRAFTED, {"max_new_tokens": 40}, RequestError, "prompt 0: it brings a draft"),
        ("hello", {"reward_scale": 1.0}, ConfigError, "reward_scale is given, but the engine has no reward model"),
    ],
    "latent_ode": [
        (FILLED, {}, RequestError, "canvas 0: the answer holds given text"),
        ("hello", {"flow_label": 3}, RequestError, "prompt 0: flow_label is 3, expected 0 to 1"),
        ("hello", {"cfg_scale": 2.0}, RequestError, "prompt 0: cfg_scale is 2 without flow_label"),
    ],
}


@pytest.fixture(scope="module", params=sorted(CONFLICTS))
def engine(request, tmp_path_factory) -> Engine:
    folder: Path = tmp_path_factory.mktemp(request.param)
    if request.param == "lad":
        return tiny_engine(folder)
    if request.param == "masked":
        make_family(folder, "llada")
    elif request.param == "simplex":
        make_tess(folder)
    else:
        make_tiny_latent(folder, classes=2)
    return Engine.load(folder, dtype="float32")


def test_every_conflict_is_found_when_a_request_is_submitted(engine):
    async def scenario(backend: AsyncEngine):
        for prompt, settings, kind, words in CONFLICTS[engine.family]:
            params = engine.sampling(**settings)
            with pytest.raises(kind, match=words) as refused:
                backend.submit(prompt, params)
            with pytest.raises(kind) as said:
                engine.generate(prompt, params)
            assert str(refused.value) == str(said.value)
        stats = backend.stats()
        assert stats.submitted == stats.failed == 0

    serve(engine, scenario)


def test_settings_of_another_family_are_refused_however_they_were_made(engine):
    other = SamplingParams(reveal="confidence") if engine.family != "masked" else SamplingParams(noise_start=0.5)

    async def scenario(backend: AsyncEngine):
        with pytest.raises(ConfigError, match=f"decodes as {engine.family}, which does not read it"):
            backend.submit("hello", other)

    serve(engine, scenario)


@pytest.mark.parametrize(
    "ids,open_ones,start,words",
    [
        ([], [], 0, "expected 1 to 512 positions"),
        ([5, 6, 7], [], 1, "no position is open"),
        ([5, 6, 7], [0, 2], 1, "a prompt position is open"),
        ([5, 6, 7], [2], 3, "answer_start 3"),
        ([5, 400], [1], 1, "outside the base's vocabulary"),
    ],
)
def test_a_canvas_of_the_callers_is_checked_at_once(tmp_path, ids, open_ones, start, words):
    canvas = Canvas(np.array(ids, np.int64), np.isin(np.arange(len(ids)), open_ones), start)

    async def scenario(backend: AsyncEngine):
        with pytest.raises(RequestError, match=words):
            backend.submit(canvas, backend.engine.sampling("paper"))
        assert backend.stats().submitted == 0

    serve(tiny_engine(tmp_path), scenario)


def test_an_engine_without_a_mask_refuses_every_request(tmp_path):
    async def scenario(backend: AsyncEngine):
        for prompt in ("hello", Canvas(np.array([5, 6]), np.array([False, True]), 1)):
            with pytest.raises(ConfigError, match="mask_token is None"):
                backend.submit(prompt, backend.engine.sampling("paper"))

    serve(tiny_engine(tmp_path, mask_token=None), scenario)
