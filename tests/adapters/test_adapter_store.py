"""Several adapters beside one base: each sequence of a batch is computed as if its adapter were alone, whatever is swapped around it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lad_engine.adapters.attach import attach
from lad_engine.adapters.low_rank import Adapter, LowRank
from lad_engine.adapters.store import AdapterStore
from lad_engine.errors import AdapterError
from lad_engine.model.language_model import LanguageModel
from lad_engine.model.transformer import Transformer
from lad_engine.ops import select_ops

LENGTHS = (19, 12, 19, 7)
IDS = torch.arange(4 * 19).view(4, 19) % 60 + 7
POSITIONS = torch.tensor([[3, 9, 18], [0, 5, 11], [3, 9, 18], [1, 2, 6]])


@pytest.fixture
def adapters(make_adapter: Callable[..., Adapter], transformer: Transformer) -> dict[str, Adapter]:
    D = transformer.facts.width
    norms = {"model.layers.0.input_layernorm": torch.linspace(0.5, 1.5, D), "model.norm": torch.linspace(2.0, 0.5, D)}
    one = make_adapter(name="one", rank=8, norms=norms)
    two = make_adapter(("q_proj", "k_proj", "down_proj", "up_proj"), name="two", rank=24, scale=0.75)
    # Layers fused in one weight may differ in scale, as PEFT's alpha_pattern allows.
    first = next(iter(two.weights))
    return {"one": one, "two": Adapter(two.facts, {**two.weights, first: LowRank(*_pair(two, first), 1.5)}, two.norms)}


def _pair(adapter: Adapter, module: str) -> tuple[torch.Tensor, torch.Tensor]:
    return adapter.weights[module].a, adapter.weights[module].b


def read(model: LanguageModel, rows: slice = slice(None)) -> torch.Tensor:
    """Logits `[B, R, V]` of the rows that predict POSITIONS, final norm of each sequence included."""
    hidden = model.read_rows(IDS[rows], POSITIONS[rows], LENGTHS[rows])
    normed, _ = model.head.ops.add_rmsnorm(hidden, None, model.head.norm, model.head.facts.norm_eps)
    return model.head.projection(normed, model.head.ops.lora_linear)


@torch.inference_mode()
@pytest.mark.parametrize("is_invariant", [True, False])
def test_a_sequence_of_a_mixed_batch_is_what_it_is_alone_and_attached(transformer, codec, adapters, open_base, base_folder, is_invariant):
    plain = LanguageModel(open_base(base_folder), is_invariant)
    base = read(plain)
    alone = {None: base}
    for name, adapter in adapters.items():
        attached = attach(plain.transformer, adapter)
        alone[name] = read(plain)
        attached.detach()
    store = AdapterStore.holding(transformer, codec, adapters)
    model = LanguageModel(transformer, is_invariant)
    names = ("two", None, "one", "two")
    store.select(names)
    mixed = read(model)
    for b, name in enumerate(names):
        torch.testing.assert_close(mixed[b], alone[name][b], rtol=2e-5, atol=2e-5)
        if name is not None:
            assert (mixed[b] - base[b]).abs().max() > 1e-2
    if is_invariant:
        assert torch.equal(mixed[1], base[1])
        for b, name in enumerate(names):
            store.select([name])
            assert torch.equal(read(model, slice(b, b + 1))[0], mixed[b])
    store.finish()
    torch.testing.assert_close(read(model), base, rtol=0 if is_invariant else 2e-5, atol=0 if is_invariant else 2e-5)


@torch.inference_mode()
def test_the_batch_follows_the_device_buffer_alone(transformer, codec, adapters):
    store = AdapterStore.holding(transformer, codec, adapters)
    lengths = torch.tensor(LENGTHS)
    model = LanguageModel(transformer, False)
    before = [stack.data_ptr() for stack in (store.rows.index, *_storage(store))]
    outputs = {}
    for names in (("one", "two", None, "one"), ("two", "one", "one", None)):
        store.select(names)
        outputs[names] = model.read_rows(IDS, POSITIONS.clamp(max=6), lengths)
    (first, mine), (_, others) = outputs.items()
    assert all(not torch.equal(mine[b], others[b]) for b in range(4))
    # What a replayed graph would do: the same buffers, other values in them.
    store.rows.index[:4] = torch.tensor([store.get(name).slot if name else -1 for name in first])
    assert torch.equal(model.read_rows(IDS, POSITIONS.clamp(max=6), lengths), mine)
    store.finish()
    store.remove("one")
    store.add("three", adapters["one"])
    store.replace("two", adapters["two"])
    assert [stack.data_ptr() for stack in (store.rows.index, *_storage(store))] == before
    assert store.nbytes == sum(tensor.nbytes for tensor in (store.rows.index, *_storage(store)))


def _storage(store: AdapterStore) -> list[torch.Tensor]:
    return [t for stack in store._stacks.values() for t in (stack.a, stack.b, stack.scales)] + list(store._gains.values())


@torch.inference_mode()
def test_a_replacement_waits_for_the_running_batch_in_a_free_slot(transformer, codec, adapters):
    store = AdapterStore.holding(transformer, codec, adapters)
    model = LanguageModel(transformer)
    store.select(["one", "two", None, "two"])
    running = read(model)
    replaced = store.replace("one", adapters["two"])
    assert (replaced.version, replaced.in_flight) == (2, 1)
    assert torch.equal(read(model), running)
    with pytest.raises(AdapterError, match=r"adapter two: all 3 slots are taken \(one, two\)"):
        store.replace("two", adapters["one"])
    store.finish()
    assert store.replace("two", adapters["two"]).in_flight is None
    (resident,) = store.select(["one"])
    assert resident.version == 2
    as_one = read(model, slice(0, 1))
    store.select(["two"])
    assert torch.equal(read(model, slice(0, 1)), as_one)


@torch.inference_mode()
def test_rows_kept_by_a_smaller_batch_keep_their_adapters(transformer, codec, adapters):
    store = AdapterStore.holding(transformer, codec, adapters)
    store.select(["one", "two", None, "two"])
    LanguageModel(transformer).rows_moved(torch.tensor([3, 0]))
    assert store.rows.index[:3].tolist() == [store.get("two").slot, store.get("one").slot, -1]


def test_what_does_not_belong_is_refused_by_name(transformer, codec, adapters, make_adapter):
    store = AdapterStore.holding(transformer, codec, {"one": adapters["one"]}, capacity=1)
    with pytest.raises(AdapterError, match=r"adapter 'ghost': is not loaded, expected one of the loaded ones \(one\)"):
        store.select(["ghost"])
    with pytest.raises(AdapterError, match="adapter one: is resident already"):
        store.add("one", adapters["one"])
    with pytest.raises(AdapterError, match=r"adapter two: it changes model.layers.0.mlp.down_proj, expected only layers and norms"):
        store.add("two", adapters["two"])
    with pytest.raises(AdapterError, match="has rank 17, expected at most 16"):
        store.add("wide", make_adapter(rank=17))
    with pytest.raises(AdapterError, match="adapter more: all 1 slots are taken"):
        store.add("more", make_adapter())
    with pytest.raises(AdapterError, match="the batch has 257 sequences, expected at most 256"):
        store.select([None] * 257)
    roomy = make_adapter(name="shifted", predicts_next_token=True)
    with pytest.raises(AdapterError, match="adapter two: predicts_next_token is True, expected False as of one, since a batch has one"):
        AdapterStore.holding(_unstacked(store), codec, {"one": adapters["one"], "two": roomy})


def _unstacked(store: AdapterStore) -> Transformer:
    store.close()
    return store._transformer


@torch.inference_mode()
def test_a_closed_store_leaves_the_base(transformer, codec, adapters, open_base, base_folder):
    store = AdapterStore.holding(transformer, codec, adapters)
    store.select(["one"] * 4)
    store.close()
    assert torch.equal(read(LanguageModel(transformer)), read(LanguageModel(open_base(base_folder))))


def test_an_occupied_or_head_adapted_decoder_is_refused(transformer, codec, make_adapter):
    head = make_adapter(("lm_head",))
    with pytest.raises(AdapterError, match="lm_head is adapted, expected layers of the decoder"):
        AdapterStore.holding(transformer, codec, {"head": head})
    attached = attach(transformer, make_adapter())
    with pytest.raises(AdapterError, match="carries an adapter already, expected a clean base"):
        AdapterStore.holding(transformer, codec, {"one": make_adapter()})
    attached.detach()


@torch.inference_mode()
def test_a_mixed_batch_on_triton_kernels_equals_the_reference(transformer, codec, adapters, open_base, base_folder: Path, device):
    pytest.importorskip("triton", reason="Triton is only published for Linux")
    names, lengths, outputs = ["two", None, "one", "two"], torch.tensor(LENGTHS), []
    for ops in (select_ops("reference"), select_ops("reference,lora_linear=triton,add_rmsnorm=triton", device)):
        decoder = open_base(base_folder)
        decoder.ops = decoder.head.ops = ops
        store = AdapterStore.holding(decoder.to(device) if ops.chosen["lora_linear"] == "triton" else decoder, codec, adapters)
        store.select(names)
        place = store.rows.index.device
        outputs.append(LanguageModel(decoder, False).read_rows(IDS.to(place), POSITIONS.to(place), lengths.to(place)).cpu())
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-4)
