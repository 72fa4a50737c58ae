"""An engine with several named adapters: requests of one batch name their own, and nobody notices the others."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_engine import PROMPTS, write_adapter

from lad_engine import Engine
from lad_engine.adapters.low_rank import Adapter
from lad_engine.adapters.reader import read_adapter
from lad_engine.adapters.single_file import save_single_file
from lad_engine.errors import AdapterError, ConfigError
from lad_engine.model.weights import open_checkpoint
from tiny_checkpoint import make_tiny


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    make_tiny(folder, family="llama", tie=True)
    return folder


@pytest.fixture(scope="module")
def files(base: Path, tmp_path_factory) -> dict[str, Path]:
    """Two adapters of one shape; the second has twice the effect, trained norms and a prompt format of its own."""
    folder = tmp_path_factory.mktemp("adapters")
    one = write_adapter(base, folder / "one.safetensors")
    read = read_adapter(one)
    stronger = {module: type(pair)(pair.a, pair.b * 2, pair.scale) for module, pair in read.weights.items()}
    width = open_checkpoint(base).facts.width
    norms = {"model.norm": next(iter(read.weights.values())).a.new_ones(width) * 1.5}
    facts = read.with_facts(name="second", prompt_format="raw").facts
    return {"one": one, "two": save_single_file(folder / "two.safetensors", Adapter(facts, stronger, norms), dtype="float32")}


@pytest.mark.parametrize("driver", ["eager", "replay"])
def test_a_request_gets_its_own_adapter_in_any_batch(base, files, driver):
    engine = Engine.load(base, adapters=files, dtype="float32", driver=driver)
    params = engine.sampling("paper", max_new_tokens=12, steps=4, early_stop=False)
    prompts, names = [PROMPTS[0]] * 3, ["two", None, "one"]
    mixed = engine.generate(prompts, params, adapters=names)
    assert [result.adapter for result in mixed] == names
    assert len({result.token_ids for result in mixed}) == 3
    for prompt, name, result in zip(prompts, names, mixed, strict=True):
        assert engine.generate(prompt, params, adapters=name)[0].token_ids == result.token_ids
        if name is not None:
            single = Engine.load(base, adapter=files[name], dtype="float32", merge=False, driver=driver)
            assert single.generate(prompt, params)[0].token_ids == result.token_ids


def test_rows_that_stop_early_leave_the_others_their_adapters(base, files):
    engine = Engine.load(base, adapters=files, dtype="float32", driver="replay")
    params = [engine.sampling("paper", max_new_tokens=12, steps=steps, early_stop=False) for steps in (2, 2, 2, 9)]
    names = ["one", None, "one", "two"]
    together = engine.generate([PROMPTS[0]] * 4, params, adapters=names)
    alone = engine.generate(PROMPTS[0], params[3], adapters="two")[0]
    assert together[3].token_ids == alone.token_ids


def test_adapters_come_and_go_by_name(base, files):
    engine = Engine.load(base, adapters={"one": files["one"], "two": files["two"]}, dtype="float32")
    params = engine.sampling("paper", max_new_tokens=12, steps=3)
    as_two = engine.generate(PROMPTS[0], params, adapters="two")[0].token_ids
    assert engine.load_adapter("one", files["two"]).version == 2
    assert engine.generate(PROMPTS[0], params, adapters="one")[0].token_ids == as_two
    engine.unload_adapter("two")
    assert list(engine.list_adapters()) == ["one"]
    with pytest.raises(AdapterError, match=r"adapter 'two': is not loaded, expected one of the loaded ones \(one\)"):
        engine.generate(PROMPTS[0], params, adapters="two")
    stream = engine.stream(PROMPTS[0], params, adapters="one")
    next(stream)
    with pytest.raises(AdapterError, match="another batch of this engine is running"):
        engine.generate(PROMPTS[0], params, adapters="one")
    stream.close()
    assert engine.generate(PROMPTS[0], params, adapters="one")[0].token_ids == as_two


def test_what_does_not_go_together_is_refused(base, files):
    with pytest.raises(ConfigError, match="beside adapters, expected one or the other"):
        Engine.load(base, adapter=files["one"], adapters=files)
    plain = Engine.load(base, adapter=files["one"])
    assert plain.list_adapters() == {}
    with pytest.raises(ConfigError, match="loaded without any by name"):
        plain.generate(PROMPTS[0], adapters="one")
    engine = Engine.load(base, adapters=files)
    with pytest.raises(AdapterError, match="adapters: 2 given for 1 prompts"):
        engine.generate(PROMPTS[:1], adapters=["one", "two"])
    with pytest.raises(AdapterError, match="keeps its adapter beside the weights, expected it merged"):
        engine.swap_adapter(files["one"])
