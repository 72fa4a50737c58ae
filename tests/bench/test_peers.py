"""The opponents compute what we compute: the same weights give the same logits, and the authors' loop decodes."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from bench.authors_loop import AuthorsLoop, AuthorsSettings
from bench.op_peers import op_peers
from bench.peers import authors_forward, forward_of, transformers_model
from bench.random_model import MASK_ID, MODELS, random_ids, random_model, step_flops, weight_bytes
from lad_engine.ops import select_ops

OPS = select_ops("reference")


@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral"])
@torch.inference_mode()
def test_transformers_gives_our_logits_on_our_weights(family):
    facts = dataclasses.replace(MODELS["tiny"], family=family, has_qkv_bias=family == "qwen2", has_tied_head=family == "llama")
    ours = random_model(facts, OPS, torch.float32, "cpu")
    theirs = transformers_model(ours, torch.float32, "cpu")
    ids = random_ids(facts, 2, 24)
    wanted = ours.head.logits(ours(ids)[:, -8:].flatten(0, 1)).view(2, 8, -1)
    got = forward_of(theirs, ids, 8)()
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3)
    # Bidirectional: an early row hears of the last token.
    changed = ids.clone()
    changed[:, -1] = 9
    assert not torch.allclose(forward_of(theirs, ids, 24)()[:, 0], forward_of(theirs, changed, 24)()[:, 0])


@torch.inference_mode()
def test_transformers_generates_what_we_decode_token_by_token():
    facts = MODELS["tiny"]
    ours = random_model(facts, OPS, torch.float32, "cpu")
    theirs = transformers_model(ours, torch.float32, "cpu", is_causal=True)
    ids = random_ids(facts, 1, 9)
    ones = torch.ones_like(ids)
    longer = theirs.generate(ids, max_new_tokens=6, min_new_tokens=6, do_sample=False, attention_mask=ones)
    logits = ours.head.logits(ours(longer[:, :-1], is_causal=True)[0])
    logits[:, list(facts.eos_ids)] = -torch.inf
    assert logits.argmax(-1)[8:].tolist() == longer[0, 9:].tolist()


def test_a_gpus_draw_can_be_captured_and_is_multinomials(monkeypatch):
    logits = torch.zeros(4000, 40)
    logits[:, 7], logits[:, 9] = 5.0, 5.0 + 0.7 * math.log(3.0)
    (run,) = op_peers("choose_token", {"logits": logits, "max_top_k": 2}).values()
    shares = [(run() == 9).float().mean().item()]
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda _: True), raising=False)
    monkeypatch.setattr(torch, "multinomial", lambda *_: pytest.fail("it checks its weights on the host"))
    shares.append((run() == 9).float().mean().item())
    assert shares == pytest.approx([0.75, 0.75], abs=0.04)


def test_random_weights_keep_the_scale_of_activations():
    for name in ("tiny",):
        model = random_model(MODELS[name], OPS, torch.float32, "cpu")
        hidden = model(random_ids(MODELS[name], 1, 16))
        logits = model.head.logits(hidden[0])
        assert 0.3 < float(logits.std()) < 3.0
        assert all(float(slot.float().std()) > 0 for slot in model.slots().values())


def test_sizes_of_the_named_models_are_those_of_their_checkpoints():
    # Parameters a forward pass reads, from the published sizes (135M, 1.24B, 3.21B, 8.03B less the untied embedding, ...).
    expected = {"SmolLM2-135M": 134.5e6, "Llama-3.2-1B": 1.236e9, "Llama-3.2-3B": 3.213e9, "Llama-3.1-8B": 7.505e9, "Mistral-7B": 7.114e9}
    for name, parameters in expected.items():
        assert weight_bytes(MODELS[name], 1) == pytest.approx(parameters, rel=2e-3), name
    assert step_flops(MODELS["Llama-3.2-1B"], 1, 256, 256) == pytest.approx(0.64e12, rel=0.01)


def test_the_authors_loop_refines_and_keeps_the_prompt():
    facts = MODELS["tiny"]
    theirs = transformers_model(random_model(facts, OPS, torch.float32, "cpu"), torch.float32, "cpu")
    loop = AuthorsLoop(authors_forward(theirs), MASK_ID, 2, "cpu", AuthorsSettings(steps=4, early_stop=False))
    prompt = random_ids(facts, 1, 5)[0].tolist()
    answer, steps = loop.decode(prompt, 16)
    assert (len(answer), steps) == (11, 4)
    masked = [loop.renoise([9] * 16, 5, index).count(MASK_ID) for index in range(4)]
    assert masked[0] > 0
    assert masked[0] <= int(0.5 * 11)
    assert loop.renoise([9] * 16, 5, 0)[:5] == [9] * 5


def test_the_authors_loop_stops_after_three_equal_states():
    def forward(ids, mask):
        logits = torch.full((1, ids.shape[1], 20), -50.0)
        logits[:, :, 7] = 50.0
        return logits

    loop = AuthorsLoop(forward, MASK_ID, 2, "cpu", AuthorsSettings(steps=20, top_k=1))
    answer, steps = loop.decode([4, 4], 10)
    assert (answer, steps) == ([7] * 8, 3)
