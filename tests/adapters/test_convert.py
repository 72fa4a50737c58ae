"""The authors' pickled whole module becomes an adapter or a model folder with the same logits; every mistake is one sentence."""

from __future__ import annotations

import subprocess
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lad_engine.adapters.attach import attach
from lad_engine.adapters.preflight import preflight
from lad_engine.adapters.reader import read_adapter
from lad_engine.convert import main
from lad_engine.model.transformer import Transformer
from lad_engine.text.codec import TextCodec
from tiny_checkpoint import make_tiny

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

IDS = torch.arange(5, 25)[None]


class Legacy:
    """A file like the authors' and the logits of the model inside it."""

    def __init__(self, base: Path, path: Path, module: str, dtype: torch.dtype) -> None:
        home = types.ModuleType(module)
        exec(
            "import transformers, types\n"
            "class CustomTransformerConfig(transformers.PretrainedConfig):\n    pass\n"
            "class CustomTransformerModel(transformers.PreTrainedModel):\n"
            "    def __init__(self, config, llama):\n"
            "        super().__init__(config)\n"
            "        self.llama = llama\n"
            # what accelerate leaves on a model trained in mixed precision
            "        self._original_forward = self.forward\n"
            "        self.forward = types.MethodType(self.forward.__func__, self)\n"
            "    def forward(self, ids):\n        return self.llama(ids)\n",
            home.__dict__,
        )
        with pytest.MonkeyPatch.context() as patch:
            if "." in module:
                patch.setitem(sys.modules, module.partition(".")[0], types.ModuleType(module.partition(".")[0]))
            patch.setitem(sys.modules, module, home)
            llama = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                settings = peft.LoraConfig(r=6, lora_alpha=6, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
                llama = peft.get_peft_model(llama, settings).eval()
            for name, parameter in llama.named_parameters():
                if "lora_B" in name:
                    parameter.data.normal_(0, 0.1)
            llama = llama.to(dtype)
            config = home.CustomTransformerConfig()
            # as the spec says, the wrapper's sizes are those of another model
            config.hidden_size, config.vocab_size, config.masking_type = 4096, 128256, "bidirectional"
            torch.save(home.CustomTransformerModel(config, llama), path)
            with torch.no_grad():
                self.logits = llama.float()(input_ids=IDS).logits[0]
        self.path = path


@pytest.fixture(scope="module")
def legacy(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Legacy:
    return Legacy(base_folder, tmp_path_factory.mktemp("legacy") / "diffusion-model-tiny.pth", "models", torch.float32)


def logits(transformer: Transformer) -> torch.Tensor:
    with torch.no_grad():
        return transformer.head.logits(transformer(IDS, is_causal=True)[0])


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return float((one - other).abs().max() / other.abs().max()) < 1e-5


@pytest.mark.parametrize("form", ["single", "peft"])
def test_a_legacy_file_becomes_an_adapter_with_the_same_logits(
    legacy: Legacy, transformer: Transformer, codec: TextCodec, tmp_path: Path, form: str, capsys: pytest.CaptureFixture
) -> None:
    target = tmp_path / ("out.safetensors" if form == "single" else "out")
    assert main([str(legacy.path), str(target), "--dtype", "float32"]) == 0
    assert "rank 6 on q_proj, v_proj" in capsys.readouterr().out
    adapter = preflight(transformer, codec, read_adapter(target)).adapter
    attach(transformer, adapter)
    assert close(logits(transformer), legacy.logits)
    facts = adapter.facts
    assert (facts.name, facts.rank, facts.alpha, facts.mask_token) == ("diffusion-model-tiny", 6, 6.0, "MASK")
    assert (facts.prompt_format, facts.profile, facts.corruption, facts.mask_id) == ("space", "space", "code", codec.encode("MASK")[0])


def test_a_legacy_file_becomes_a_model_folder(
    legacy: Legacy, base_folder: Path, codec: TextCodec, open_base: Callable[..., Transformer], tmp_path: Path
) -> None:
    folder = tmp_path / "full"
    assert main([str(legacy.path), str(folder), "--to", "full", "--tokenizer", str(base_folder)]) == 0
    assert {"config.json", "model.safetensors", "adapter.safetensors", "tokenizer.json"} <= {path.name for path in folder.iterdir()}
    original, copied = load_file(base_folder / "model.safetensors"), load_file(folder / "model.safetensors")
    assert original.keys() == copied.keys() and all(torch.equal(original[name], copied[name]) for name in original)
    transformer = open_base(folder)
    preflight(transformer, codec, read_adapter(folder / "adapter.safetensors"))
    # transformers agrees that it is a checkpoint
    assert transformers.AutoConfig.from_pretrained(folder).hidden_size == 64


def test_a_tied_head_stays_tied_in_the_model_folder(tmp_path: Path, open_base: Callable[..., Transformer]) -> None:
    made = Legacy(make_tiny(tmp_path / "tied", "smollm2"), tmp_path / "x.pth", "models", torch.float32)
    assert main([str(made.path), str(tmp_path / "full"), "--to", "full", "--dtype", "float32"]) == 0
    assert "lm_head.weight" not in load_file(tmp_path / "full" / "model.safetensors")
    transformer = open_base(tmp_path / "full")
    attach(transformer, read_adapter(tmp_path / "full" / "adapter.safetensors"))
    assert close(logits(transformer), made.logits)


@pytest.mark.parametrize("module", ["__main__", "model_config", "models.custom_transformer"])
def test_the_wrapper_may_come_from_any_module_the_authors_used(base_folder: Path, tmp_path: Path, module: str) -> None:
    made = Legacy(base_folder, tmp_path / "x.pth", module, torch.float16)
    assert main([str(made.path), str(tmp_path / "out.safetensors")]) == 0
    assert len(read_adapter(tmp_path / "out.safetensors").weights) == 4


def test_large_models_are_written_in_shards(legacy: Legacy, base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lad_engine.adapters.shards.SHARD_BYTES", 100_000)
    assert main([str(legacy.path), str(tmp_path / "full"), "--to", "full"]) == 0
    shards = sorted((tmp_path / "full").glob("model-*.safetensors"))
    assert len(shards) > 1
    joined = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    assert joined.keys() == load_file(base_folder / "model.safetensors").keys()


def test_every_form_becomes_every_other(legacy: Legacy, base_folder: Path, tmp_path: Path) -> None:
    single, folder, again = tmp_path / "a.safetensors", tmp_path / "folder", tmp_path / "b.safetensors"
    facts = [
        "--name",
        "renamed",
        "--mask-token",
        "HO",
        "--profile",
        "paper",
        "--prompt-format",
        "chat",
        "--next-position",
        "--base",
        str(base_folder),
    ]
    assert main([str(legacy.path), str(single), "--dtype", "float32", *facts]) == 0
    assert main([str(single), str(folder), "--dtype", "float32"]) == 0
    assert main([str(folder), str(again), "--dtype", "float32"]) == 0
    first, last = read_adapter(single), read_adapter(again)
    assert first.facts == last.facts
    assert (first.facts.name, first.facts.mask_token, first.facts.predicts_next_token) == ("renamed", "HO", True)
    assert len(first.facts.base_fingerprint) == 64
    for module, pair in first.weights.items():
        assert torch.equal(pair.a, last.weights[module].a) and torch.equal(pair.b, last.weights[module].b)


def test_a_pickled_peft_folder_is_converted(legacy: Legacy, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    assert main([str(legacy.path), str(folder), "--to", "peft", "--dtype", "float32"]) == 0
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    expected = read_adapter(folder)
    (folder / "adapter_model.safetensors").unlink()
    assert main([str(folder), str(tmp_path / "out"), "--dtype", "float32"]) == 0
    again = read_adapter(tmp_path / "out")
    assert all(torch.equal(again.weights[m].b, pair.b) for m, pair in expected.weights.items())


def test_mistakes_on_the_command_line_are_one_sentence_and_exit_code_2(
    legacy: Legacy, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    taken = tmp_path / "taken.safetensors"
    taken.write_text("mine")
    (tmp_path / "text.pth").write_text("hello")
    source, out = str(legacy.path), str(tmp_path / "out")
    cases = {
        "no such file": [str(tmp_path / "missing.pth"), out],
        "cannot be opened": [str(tmp_path / "text.pth"), out],
        "--overwrite": [source, str(taken)],
        "legacy .pth file": [str(taken), out, "--to", "full"],
        "adapter_config.json is missing": [str(tmp_path.parent), out],
        "not be written": [source, str(tmp_path / "text.pth" / "out.safetensors")],
        "unrecognized arguments: --surprise": [source, out, "--surprise"],
        "arguments are required: OUT": [source],
        "invalid choice: 'papr'": [source, out, "--profile", "papr"],
        "tokenizer files": [source, out, "--to", "full", "--tokenizer", str(tmp_path)],
    }
    for words, arguments in cases.items():
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1 and error.startswith("error: ")
    assert main([source, str(taken), "--overwrite"]) == 0
    assert main([str(taken), str(taken), "--overwrite"]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["taken.safetensors", "text.pth"]


def test_the_command_refuses_a_hostile_file_without_a_traceback(tmp_path: Path) -> None:
    torch.save({"x": Hostile(tmp_path / "executed")}, tmp_path / "x.pth")
    command = [sys.executable, "-m", "lad_engine.convert", str(tmp_path / "x.pth"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "mkdir" in done.stderr and "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["x.pth"]


class Hostile:
    """Makes a folder when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple:
        import os

        return os.mkdir, (self.path,)
