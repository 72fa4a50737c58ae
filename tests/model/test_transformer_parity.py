"""The decoder equals transformers' own models, bidirectionally and causally, for every family."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from lad_engine.errors import AdapterError, CheckpointError
from lad_engine.model.kv_cache import KVCache
from lad_engine.model.language_model import LanguageModel
from lad_engine.model.transformer import Transformer
from lad_engine.model.weights import open_checkpoint
from lad_engine.ops import select_ops
from tiny_checkpoint import make_tiny

CASES = [
    ("llama", True, 1),
    ("llama", False, 2),
    ("llama3", True, 1),
    ("mistral", False, 1),
    ("qwen2", True, 2),
    ("qwen2", False, 1),
    ("smollm2", True, 1),
]
MAX_RELATIVE_ERROR = 1e-5


def load(folder, dtype=torch.float32) -> Transformer:
    checkpoint = open_checkpoint(folder)
    return Transformer.from_tensors(checkpoint.facts, checkpoint.tensors(), select_ops("reference"), dtype)


def relative_error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((got - wanted).abs().max() / wanted.abs().max()).item()


def all_visible(batch: int, length: int) -> torch.Tensor:
    return torch.zeros(batch, 1, length, length)


@pytest.mark.parametrize("family,is_tied,shards", CASES)
def test_logits_equal_transformers(tmp_path, family, is_tied, shards):
    make_tiny(tmp_path, family=family, tie=is_tied, shards=shards)
    model = load(tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager").eval()
    # 200 positions reach the scaled part of llama3's frequencies.
    ids = torch.randint(0, model.facts.vocab_size, (2, 200), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        for is_causal, mask in ((False, all_visible(2, 200)), (True, None)):
            got = model.head.logits(model(ids, is_causal=is_causal).flatten(0, 1)).view(2, 200, -1)
            assert relative_error(got, theirs(ids, attention_mask=mask).logits) < MAX_RELATIVE_ERROR


def test_cached_decoding_equals_one_causal_pass(tmp_path):
    make_tiny(tmp_path, family="qwen2", tie=True)
    model = load(tmp_path)
    ids = torch.arange(24).view(2, 12)
    cache = KVCache(model.facts, batch=2, capacity=16, dtype=torch.float32, device="cpu")
    with torch.inference_mode():
        whole = model(ids, is_causal=True)
        pieces = torch.cat([model(ids[:, a:b], cache=cache) for a, b in ((0, 5), (5, 6), (6, 12))], dim=1)
    assert cache.length == 12
    assert relative_error(pieces, whole) < MAX_RELATIVE_ERROR


@pytest.mark.parametrize("shift", [False, True])
def test_batch_mates_do_not_change_a_sequence(tmp_path, shift):
    make_tiny(tmp_path, family="llama", tie=True)
    model = LanguageModel(load(tmp_path), batch_invariant=True)
    model.head.predicts_next_token = shift
    ids = torch.randint(0, 300, (2, 40), generator=torch.Generator().manual_seed(1))
    positions = torch.arange(10, 18).expand(2, 8)
    with torch.inference_mode():
        together = model.read_rows(ids, positions, (40, 23))
        alone = model.read_rows(ids[1:, :23], positions[1:], (23,))
    assert torch.equal(together[1], alone[0])


def test_padded_batch_agrees_with_single_sequences(tmp_path):
    make_tiny(tmp_path, family="mistral", tie=False)
    transformer = load(tmp_path)
    ids = torch.randint(0, 300, (3, 33), generator=torch.Generator().manual_seed(2))
    positions = torch.arange(5, 11).expand(3, 6)
    with torch.inference_mode():
        padded = LanguageModel(transformer, batch_invariant=False).read_rows(ids, positions, (33, 11, 20))
        single = LanguageModel(transformer, batch_invariant=True).read_rows(ids, positions, (33, 11, 20))
    assert relative_error(padded, single) < MAX_RELATIVE_ERROR


def test_next_token_models_read_the_row_before(tmp_path):
    make_tiny(tmp_path, family="llama", tie=True)
    model = LanguageModel(load(tmp_path))
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        hidden = model.hidden(ids)
        model.head.predicts_next_token = True
        read = model.read_rows(ids, torch.tensor([[7, 8]]), (20,))
    assert torch.equal(read[0], hidden[0, 6:8])


def test_recomputed_layers_give_the_same_gradient(tmp_path):
    make_tiny(tmp_path, family="smollm2", tie=True)
    model = load(tmp_path)
    projection, start, stop = model.projection("model.layers.0.self_attn.v_proj")
    a = torch.nn.Parameter(torch.randn(4, model.facts.width))
    b = torch.nn.Parameter(torch.randn(stop - start, 4))
    projection.attach(a, b, 0.5, start, stop)
    ids = torch.arange(12)[None]
    gradients = []
    for recomputes in (False, True):
        loss = model(ids, recomputes=recomputes).square().mean()
        gradients.append(torch.autograd.grad(loss, (a, b)))
    for plain, recomputed in zip(*gradients, strict=True):
        assert plain.abs().max() > 0
        assert torch.allclose(plain, recomputed, rtol=1e-5, atol=1e-8)


def test_low_rank_path_equals_the_merged_weight_on_a_fused_projection(tmp_path):
    make_tiny(tmp_path, family="qwen2", tie=True)
    model = load(tmp_path)
    ids = torch.arange(12)[None]
    paths = []
    for name in ("model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj", "model.layers.0.mlp.up_proj", "lm_head"):
        projection, start, stop = model.projection(name)
        paths.append((projection, torch.randn(3, model.facts.width) / 8, torch.randn(stop - start, 3) / 8, start, stop))
    for projection, a, b, start, stop in paths:
        projection.attach(a, b, 2.0, start, stop)
    with torch.inference_mode():
        unmerged = model.head.logits(model(ids)[0])
    for projection, a, b, start, stop in paths:
        projection.detach()
        projection.weight[start:stop] += 2.0 * b @ a
    with torch.inference_mode():
        assert relative_error(model.head.logits(model(ids)[0]), unmerged) < MAX_RELATIVE_ERROR


def test_adapting_a_tied_head_leaves_the_embedding_alone(tmp_path):
    make_tiny(tmp_path, family="llama", tie=True)
    model = load(tmp_path)
    projection, _, _ = model.projection("lm_head")
    before = model.embed.clone()
    projection.weight += 1
    assert torch.equal(model.embed, before)


def test_unknown_missing_and_misshapen_tensors_are_named(tmp_path):
    make_tiny(tmp_path, family="llama", tie=False)
    checkpoint = open_checkpoint(tmp_path)
    tensors = dict(checkpoint.tensors())

    def build(changed: dict[str, torch.Tensor]) -> None:
        Transformer.from_tensors(checkpoint.facts, changed.items(), select_ops("reference"))

    with pytest.raises(CheckpointError, match=r"model\.extra\.weight is unknown"):
        build({**tensors, "model.extra.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"missing, the first is lm_head\.weight"):
        build({name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"})
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight is \(3,\)"):
        build({**tensors, "model.norm.weight": torch.zeros(3)})


def test_unknown_adapter_modules_and_overlong_canvases_are_refused(tmp_path):
    make_tiny(tmp_path, family="llama", tie=True)
    model = load(tmp_path)
    with pytest.raises(AdapterError, match=r"model\.layers\.9\.self_attn\.q_proj"):
        model.projection("model.layers.9.self_attn.q_proj")
    with pytest.raises(AdapterError, match=r"model\.layers\.0\.nonsense"):
        model.norm("model.layers.0.nonsense")
    too_long = model.facts.max_positions + 1
    with pytest.raises(CheckpointError, match=f"{too_long} positions"):
        model(torch.zeros(1, too_long, dtype=torch.int64))


@pytest.mark.parametrize("is_causal", [False, True], ids=["all_visible", "causal"])
def test_the_default_base_equals_transformers(default_checkpoint, is_causal):
    model = Transformer.from_tensors(default_checkpoint.facts, default_checkpoint.tensors(), select_ops("reference"))
    theirs = AutoModelForCausalLM.from_pretrained(default_checkpoint.folder, dtype=torch.float32, attn_implementation="eager").eval()
    ids = torch.randint(20, model.facts.vocab_size, (1, 48), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        got = model.head.logits(model(ids, is_causal=is_causal)[0])
        wanted = theirs(ids, attention_mask=None if is_causal else all_visible(1, 48)).logits[0]
    assert relative_error(got, wanted) < MAX_RELATIVE_ERROR
