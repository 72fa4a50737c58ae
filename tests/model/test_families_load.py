"""Published layouts of masked diffusion models load, say how they decode, and compute what their own code computes."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_families import FAMILIES, MASK_ID, gpt2_config, gpt2_tensors, make_family

from lad_engine.errors import CheckpointError
from lad_engine.model.backbones import backbone_of
from lad_engine.model.facts import facts_from_config
from lad_engine.model.gpt2 import Gpt2Transformer
from lad_engine.model.language_model import LanguageModel
from lad_engine.model.transformer import Transformer
from lad_engine.model.weights import open_checkpoint
from lad_engine.ops import select_ops
from lad_engine.training.lora import attach_trainable
from tiny_checkpoint import make_tiny, tiny_config, tiny_tensors

OPS = select_ops("reference")


def load(folder):
    checkpoint = open_checkpoint(folder)
    model = backbone_of(checkpoint.facts).from_tensors(checkpoint.facts, checkpoint.tensors(), OPS)
    model.head.predicts_next_token = checkpoint.facts.predicts_next_token
    return checkpoint.facts, model


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("families")
    return {name: make_family(root / name, name) for name in FAMILIES}


def test_every_layout_says_how_it_decodes(folders):
    facts = {name: load(folder)[0] for name, folder in folders.items()}
    assert {one.decoding for one in facts.values()} == {"masked"}
    assert {name: one.predicts_next_token for name, one in facts.items()} == {
        "diffugpt": True, "diffullama": True, "llada": False, "dream": True,
    }  # fmt: skip
    assert {name: one.mask_id for name, one in facts.items()} == {
        "diffugpt": None, "diffullama": None, "llada": MASK_ID, "dream": MASK_ID,
    }  # fmt: skip
    assert facts["llada"].vocab_size == 320 and facts["diffugpt"].max_positions == 256


def test_a_name_decides_nothing(tmp_path):
    facts, _ = load(make_tiny(tmp_path / "diffullama-llada-dream", family="llama"))
    assert (facts.decoding, facts.predicts_next_token) == ("lad", False)


def test_a_checkpoint_may_say_its_family_itself(tmp_path):
    facts, _ = load(make_tiny(tmp_path / "said", family="llama", decoding="masked", mask_token_id=MASK_ID, predicts_next_token=False))
    assert (facts.decoding, facts.mask_id, facts.predicts_next_token) == ("masked", MASK_ID, False)
    with pytest.raises(CheckpointError, match=r"decoding is 'magic', expected one of lad, masked"):
        open_checkpoint(make_tiny(tmp_path / "wrong", family="llama", decoding="magic"))


def hugging_face(config_class, model_class, settings, tensors):
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, config_class)(**{key: value for key, value in settings.items() if key != "model_type"})
    config._attn_implementation = "eager"
    model = getattr(transformers, model_class)(config).eval()
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert not unexpected and all("lm_head" in name or name.endswith(".bias") for name in missing)
    model.tie_weights()

    def logits(ids):
        # A mask of zeros hides nothing: their causal model then looks both ways.
        with torch.no_grad():
            return model(ids, attention_mask=torch.zeros(len(ids), 1, ids.shape[1], ids.shape[1])).logits

    return logits


def assert_same_logits(model, theirs):
    ids = torch.randint(0, 300, (2, 23))
    hidden = model(ids)
    ours = model.head.logits(hidden.flatten(0, 1)).view(2, 23, -1)
    wanted = theirs(ids)
    assert (ours - wanted).abs().max() <= 2e-5 * wanted.abs().max()


def test_gpt2_computes_transformers_logits_both_ways(folders):
    settings = gpt2_config()
    theirs = hugging_face("GPT2Config", "GPT2LMHeadModel", settings, gpt2_tensors(settings))
    facts, model = load(folders["diffugpt"])
    assert isinstance(model, Gpt2Transformer) and facts.mlp_width == 256
    with torch.inference_mode():
        assert_same_logits(model, theirs)


@pytest.mark.parametrize("name", ["llada", "dream", "diffullama"])
def test_llama_like_layouts_compute_the_same_model_under_their_own_names(folders, name):
    if name == "dream":
        settings = tiny_config("qwen2", tie=False)
        theirs = hugging_face("Qwen2Config", "Qwen2ForCausalLM", settings, tiny_tensors(settings))
    else:
        theta = {"rope_theta": 500000.0} if name == "llada" else {}
        settings = tiny_config("llama", tie=False, num_key_value_heads=4, **theta)
        theirs = hugging_face("LlamaConfig", "LlamaForCausalLM", settings, tiny_tensors(settings))
    _, model = load(folders[name])
    with torch.inference_mode():
        assert_same_logits(model, theirs)


def test_the_shift_reads_the_row_before(folders):
    _, model = load(folders["dream"])
    ids, positions = torch.randint(0, 300, (1, 12)), torch.tensor([[3, 7, 11]])
    with torch.inference_mode():
        rows = LanguageModel(model).read_rows(ids, positions, (12,))
        assert torch.equal(rows[0], model(ids)[0, [2, 6, 10]])


@pytest.mark.parametrize("left_out", ["embed_tokens.weight", "lm_head.weight", "model."])
def test_a_tied_name_or_the_second_copy_may_be_missing(folders, tmp_path, left_out):
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / file).write_bytes((folders["diffugpt"] / file).read_bytes())
    tensors = load_file(folders["diffugpt"] / "model.safetensors")
    save_file({name: tensor for name, tensor in tensors.items() if not name.startswith(left_out)}, tmp_path / "model.safetensors")
    whole, part = load(folders["diffugpt"])[1], load(tmp_path)[1]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), part.parameters(), strict=True))


def test_wrapped_llama_keys_are_a_llama(folders, tmp_path):
    plain = open_checkpoint(folders["diffullama"])
    table = {"model.embed_tokens.weight": "embed_tokens.weight", "lm_head.weight": "lm_head.weight"}
    tensors = {table.get(name, name.replace("model.", "denoise_model.", 1)): tensor.clone() for name, tensor in plain.tensors()}
    (tmp_path / "config.json").write_text(json.dumps(tiny_config("llama", tie=False, num_key_value_heads=4)))
    save_file(tensors, tmp_path / "model.safetensors")
    facts, model = load(tmp_path)
    assert facts.decoding == "masked" and facts.predicts_next_token
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), load(folders["diffullama"])[1].parameters(), strict=True))


@pytest.mark.parametrize(
    ("name", "changes", "sentence"),
    [
        ("diffugpt", {"activation_function": "relu"}, "activation_function is 'relu', expected 'gelu_new'"),
        ("diffugpt", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True, expected False"),
        ("llada", {"layer_norm_type": "default"}, "layer_norm_type is 'default', expected 'rms'"),
        ("llada", {"alibi": True}, "alibi is True, expected False"),
        ("diffugpt", {"n_embd": 96}, r"is .* expected .*\. Check that config.json"),
    ],
)
def test_what_we_would_compute_wrongly_is_refused_naming_the_field(tmp_path, name, changes, sentence):
    make_family(tmp_path, name)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(CheckpointError, match=sentence):
        open_checkpoint(tmp_path)


def test_gpt2_decodes_by_diffusion_only(folders):
    _, model = load(folders["diffugpt"])
    with pytest.raises(CheckpointError, match="autoregressive decoding is asked for"):
        model(torch.zeros(1, 3, dtype=torch.int64), is_causal=True)
    with pytest.raises(CheckpointError, match="300 positions, expected at most 256"):
        model(torch.zeros(1, 300, dtype=torch.int64))


@pytest.mark.parametrize(("rank", "wanted"), [(8, 151_060_480), (16, 171_048_960)])
def test_the_gsm_adapter_of_diffullama_has_the_published_size(rank, wanted):
    """LoRA on every linear layer of LLaMA-2-7B and the whole embedding: 151.06 M in the paper (rank 8), 171 M in the released YAML."""
    facts = load_facts_of_llama2()
    transformer = Transformer(facts, OPS, torch.bfloat16, "meta")
    linear = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    trainable = attach_trainable(transformer, linear, rank, rank, uses_rslora=False, dropout=0.0, train_norms=False, seed=0)
    assert sum(parameter.numel() for parameter in trainable.named().values()) + transformer.embed.numel() == wanted


def load_facts_of_llama2():
    config = {
        "model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 11008,
        "vocab_size": 32000, "rms_norm_eps": 1e-5, "max_position_embeddings": 4096, "tie_word_embeddings": False,
    }  # fmt: skip
    facts = facts_from_config(config, {}, where="config.json", name="llama-2-7b")
    assert (facts.kv_heads, facts.rope.theta, facts.has_tied_head) == (32, 10000.0, False)
    return facts
