"""The profile that a search left beside an adapter counts for adapters by name too: in an engine, a backend, and after a replacement."""

from __future__ import annotations

import json

import pytest
from backend_kit import serve

from lad_engine import Engine
from lad_engine.errors import ConfigError
from tiny_adapter import write_adapter
from tiny_checkpoint import make_tiny


@pytest.fixture
def places(tmp_path):
    """A base, an adapter with a tuned profile (5 steps), and one that records "space"."""
    base = make_tiny(tmp_path / "base", tie=True)
    tuned = write_adapter(base, tmp_path / "one.safetensors", 1, name="one")
    tuned.with_suffix(".profile.json").write_text(json.dumps({"settings": {"steps": 5, "remasking": "none", "max_new_tokens": 8}}))
    return base, tuned, write_adapter(base, tmp_path / "two.safetensors", 2, name="two", profile="space")


@pytest.fixture
def engine(places):
    base, tuned, recorded = places
    return Engine.load(base, adapters={"tuned": tuned, "recorded": recorded}, dtype="float32")


def test_an_engine_decodes_each_named_adapter_with_its_own_profile(engine):
    assert [engine.sampling(adapter=name).profile for name in ("tuned", "recorded", None)] == ["tuned", "space", "paper"]
    assert engine.sampling(adapter="tuned", seed=4) == engine.sampling(adapter="tuned").replace(seed=4)
    assert engine.sampling("space", adapter="tuned").profile == "space"
    results = engine.generate(["hello"] * 3, adapters=["tuned", "recorded", None])
    assert [result.profile for result in results] == ["tuned", "space", "paper"]
    assert results[0].steps <= 5 and len(results[0].token_ids) == 8


def test_a_backend_does_too_and_a_replacement_brings_its_own(engine, places):
    _, tuned, recorded = places

    async def scenario(backend):
        first = await backend.generate("hello", adapter="tuned")
        assert {status.name: status.path for status in backend.list_adapters()} == {"tuned": str(tuned), "recorded": str(recorded)}
        await backend.load_adapter("tuned", recorded)
        await backend.load_adapter("recorded", tuned)
        second = [(await backend.generate("hello", adapter=name)).result.profile for name in ("tuned", "recorded")]
        return first.result.profile, second

    assert serve(engine, scenario) == ("tuned", ["space", "tuned"])


def test_a_damaged_file_stops_the_adapter_from_being_loaded(engine, places):
    base, tuned, recorded = places
    tuned.with_suffix(".profile.json").write_text("{")

    async def scenario(backend):
        with pytest.raises(ConfigError, match=r"one\.profile\.json: is no decode profile"):
            await backend.load_adapter("recorded", tuned)
        # What was read when the adapter was loaded still holds.
        assert (await backend.generate("hello", adapter="tuned")).result.profile == "tuned"
        return (await backend.generate("hello", adapter="recorded")).adapter_version

    assert serve(engine, scenario) == 1
    with pytest.raises(ConfigError, match="is no decode profile"):
        Engine.load(base, adapters={"tuned": tuned, "recorded": recorded})
