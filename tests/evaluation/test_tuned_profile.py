"""The profile that a search leaves beside an adapter, and which profile an engine decodes with."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from lad_engine import Engine
from lad_engine.errors import ConfigError
from lad_engine.evaluation import profile_search
from lad_engine.evaluation.profile_search import choose, search
from lad_engine.profiles import beside_adapter
from tiny_adapter import write_adapter
from tiny_checkpoint import make_tiny


@pytest.fixture(scope="module")
def engine(tmp_path_factory) -> Engine:
    folder = make_tiny(tmp_path_factory.mktemp("base"), tie=True)
    return Engine.load(folder, adapter=write_adapter(folder, tmp_path_factory.mktemp("adapter") / "mine.safetensors"))


@pytest.fixture
def place(engine: Engine):
    place = beside_adapter(engine.adapter_path)
    assert place.name == "mine.profile.json"
    yield place
    place.unlink(missing_ok=True)


def test_a_named_profile_goes_before_the_file_and_the_file_before_what_the_adapter_records(engine: Engine, place: Path):
    assert (engine.sampling().profile, engine.sampling().steps) == ("paper", 16)
    place.write_text(json.dumps({"settings": {"steps": 5, "remasking": "none", "temperature": 0.0}}))
    assert (engine.sampling().profile, engine.sampling().steps, engine.sampling().remasking) == ("tuned", 5, "none")
    assert engine.sampling(steps=7).steps == 7
    assert engine.sampling("paper").steps == 16
    assert engine.generate("the user")[0].profile == "tuned"
    engine.swap_adapter(None)
    assert engine.sampling().profile == "paper"
    engine.swap_adapter(place.with_name("mine.safetensors"))
    assert engine.sampling().profile == "tuned"


@pytest.mark.parametrize("text", ["{", "[]", '{"settings": {"stepz": 3}}', '{"settings": {"steps": 0}}', "{}"])
def test_a_damaged_file_is_named(engine: Engine, place: Path, text: str):
    place.write_text(text)
    with pytest.raises(ConfigError, match=r"mine\.profile\.json: is no decode profile"):
        engine.sampling()
    assert engine.sampling("paper").steps == 16


def test_a_folder_keeps_it_inside(tmp_path: Path):
    assert beside_adapter(tmp_path) == tmp_path / "profile.json"


def test_of_candidates_that_write_nothing_none_is_chosen():
    trials = [{"name": str(nfe), "quality": {"value": 0.0}, "nfe": {"value": nfe}} for nfe in (8.0, 2.0)]
    with pytest.raises(ConfigError, match="none of 2 candidates wrote words"):
        choose(trials, 0.02)
    one = [{"name": "one", "quality": {"value": 0.1}, "nfe": {"value": 8.0}}]
    assert choose(one, 0.0) is one[0]


def test_what_the_engine_decodes_with_now_is_a_candidate_too(engine: Engine, place: Path, monkeypatch):
    place.write_text(json.dumps({"settings": {"steps": 6, "remasking": "transfer", "block_length": 2, "temperature": 0.0, "top_p": 0.9}}))

    def measured(engine, judge, examples, candidates, *rest):
        return [{"name": name, "settings": settings, "quality": {"value": 1.0}, "nfe": {"value": 1.0}} for name, settings in candidates]

    monkeypatch.setattr(profile_search, "_measured", measured)
    trials = search(engine, None, [], (4, 8), 64, None, 1, io.StringIO())
    found = {trial["name"]: trial["settings"] for trial in trials if trial["name"].startswith("profile tuned")}
    assert list(found) == ["profile tuned, 4 steps", "profile tuned, 8 steps", "profile tuned, 6 steps"]
    now = engine.sampling()
    place.write_text(json.dumps({"settings": found["profile tuned, 6 steps"]}))
    assert now == engine.sampling() == engine.sampling("paper", **found["profile tuned, 6 steps"]).replace(profile="tuned")
