"""L2D decoding: the base model at t = 0, an oracle's flow row at the end, the plain loop's tokens, and a static step."""

from __future__ import annotations

import dataclasses

import bench_on_path  # noqa: F401
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from step_guard import guarded

from bench.families.latent_loop import ReferenceLoop
from lad_engine.config import AUTOREGRESSIVE_DEFAULTS, SOLVERS, SamplingParams
from lad_engine.contracts import Canvas, TokenChoice
from lad_engine.denoisers.autoregressive import AutoregressiveDecoder
from lad_engine.denoisers.latent_bucket import LatentBuckets
from lad_engine.denoisers.latent_ode import LatentOdeDecoder
from lad_engine.errors import RequestError
from lad_engine.model.causal_model import CausalModel
from lad_engine.model.language_model import LanguageModel
from lad_engine.model.latent_model import LatentModel
from lad_engine.model.latent_path import LatentTransformer
from lad_engine.model.weights import open_checkpoint
from lad_engine.ops import select_ops
from lad_engine.runtime.drivers import CapturedDecode
from lad_engine.runtime.graphs import Graphs
from lad_engine.runtime.runner import run
from lad_engine.runtime.simulated_capture import SimulatedCapture
from lad_engine.samplers.purposes import FLOW_START
from tiny_latent import make_tiny_latent

PROMPTS = [list(range(5, 25)), list(range(40, 47)), [9]]
NO_TOKEN = -1
GREEDY = {"temperature": 0.0, "top_k": 1}


def params(count: int = 6, **settings) -> SamplingParams:
    return SamplingParams(max_new_tokens=count, **{"steps": 7, "top_k": 0, "temperature": 1.0, **settings})


def canvas(prompt: list[int], count: int) -> Canvas:
    ids = np.array(prompt + [NO_TOKEN] * count)
    return Canvas(ids, np.arange(len(ids)) >= len(prompt), len(prompt))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {classes: make_tiny_latent(tmp_path_factory.mktemp(f"classes{classes}"), classes=classes) for classes in (0, 3)}


def load(folder, invariant: bool = True) -> LatentOdeDecoder:
    checkpoint, ops = open_checkpoint(folder), select_ops("auto")
    transformer = LatentTransformer.from_tensors(checkpoint.facts, checkpoint.tensors(), ops)
    return LatentOdeDecoder(LatentModel(LanguageModel(transformer, invariant)), ops)


@torch.inference_mode()
def decoded(decoder, prompts, each, eos_ids=(2,), is_static=False):
    canvases = [canvas(prompt, one.max_new_tokens) for prompt, one in zip(prompts, each, strict=True)]
    state = decoder.begin(canvases, each, mask_id=NO_TOKEN, eos_ids=eos_ids, device="cpu")
    if is_static:
        decoder.prime_(state)
        state.is_static = True
    run(decoder, state)
    return state


def tokens(state, row: int) -> list[int]:
    return state.answer[row, : int(state.answer_length[row])].tolist()


@pytest.mark.parametrize("invariant", [True, False])
def test_one_evaluation_is_the_base_model_token_for_token_and_bit_for_bit(folders, invariant):
    decoder, each = load(folders[0], invariant), [params(count, steps=1, **GREEDY) for count in (14, 9, 20)]
    base = AutoregressiveDecoder(CausalModel(decoder.model.transformer, invariant), decoder.ops)
    with torch.inference_mode():
        theirs = base.begin(PROMPTS, [SamplingParams(max_new_tokens=one.max_new_tokens, **AUTOREGRESSIVE_DEFAULTS) for one in each],
                            stop_ids=(2,), device="cpu")  # fmt: skip
        run(base, theirs)
    ours = decoded(decoder, PROMPTS, each)
    for row in range(3):
        assert tokens(ours, row) == theirs.answer[row, : int(theirs.answer_length[row])].tolist()
    assert torch.equal(ours.confidence, theirs.confidence)
    assert ours.nfe.tolist() == ours.answer_length.tolist()


class Oracle:
    """Answers the k-th token of `answer` whatever it is shown, and checks that each was read on the straight line to its flow row."""

    flow_width, sigma, classes, hidden_like = 16, 64.0, 0, (4, torch.float32)

    def __init__(self, answer: list[int], end: float) -> None:
        self.answer, self.end, self.made, self.read_at, self.noise = answer, end, 0, None, None
        self._table = torch.nn.functional.normalize(torch.randn(32, 16), dim=1) * 4.0

    def open_cache(self, batch, capacity):
        return self

    def view(self, start, stop, capacity=None):
        return self

    def prefill(self, ids, lengths, cache):
        return torch.zeros(len(lengths), 4)

    def decode(self, tokens, cache, lengths=None, unread=None):
        assert tokens.tolist() == [self.answer[self.made]]
        wanted = self.end * self._table[self.answer[self.made]] + (1 - self.end) * self.noise[self.made]
        # Close to the end the velocity divides the rounding of x by what is left of the time.
        assert torch.allclose(self.read_at[0, 0], wanted, atol=1e-3 if self.end == 1.0 else 1e-2)
        self.made += 1
        return torch.zeros(1, 4)

    def choose(self, rows, rule, uniforms):
        return TokenChoice(torch.full((len(rows),), self.answer[self.made]), torch.ones(len(rows)))

    def logits(self, rows):
        return torch.nn.functional.one_hot(torch.tensor([self.answer[self.made]]), 32).float() * 1e3

    def vectors(self, tokens):
        return self._table[tokens]

    def table(self):
        return self._table

    def grid(self, times):
        return type("Grid", (tuple,), {"__new__": lambda cls, *parts: tuple.__new__(cls, parts)})(torch.zeros(len(times), 1))

    def flow(self, x, scale, at, classes, hidden, cache, positions, lengths=None, unread=None, widths=None):
        self.read_at = x
        return hidden[:, None]


@pytest.mark.parametrize("estimate", ["sample", "average", "average_normalised", "average_nearest"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_with_an_oracle_the_path_ends_at_the_flow_row_of_its_token(solver, estimate):
    # The velocity counts as zero at t = 1, as in the reference: solvers with a stage at the end of a step have to end before it.
    end, answer, ops = 1.0 if solver in ("euler", "midpoint", "heun3") else 0.999, [3, 30, 7, 7], select_ops("auto")
    oracle = Oracle(answer, end)
    u = [ops.uniform(torch.tensor([0]), torch.arange(16), torch.tensor([made]), FLOW_START)[0] for made in range(4)]
    oracle.noise = [torch.special.ndtri(one) * 64.0 for one in u]
    state = decoded(LatentOdeDecoder(oracle, ops), [[1, 2]], [params(4, solver=solver, steps=17, flow_estimate=estimate, flow_end=end)])
    assert tokens(state, 0) == answer and oracle.made == 4


def test_tokens_and_latents_are_those_of_the_plain_loop(folders):
    decoder = load(folders[0])
    loop = ReferenceLoop(open_checkpoint(folders[0]).facts, load_file(folders[0] / "model.safetensors"), 64)
    ids, one = PROMPTS[1], params(8, steps=15, seed=5, **GREEDY)
    state = decoder.begin([canvas(ids, 8)], [one], mask_id=NO_TOKEN, eos_ids=(), device="cpu")
    with torch.inference_mode():
        hidden = loop.read(ids)
        for made in range(8):
            uniforms = decoder.ops.uniform(state.seeds, state.components, state.row_steps, FLOW_START)
            logits, _ = loop.token(hidden, torch.special.ndtri(uniforms[0]) * 64.0)
            decoder.step_(state)
            assert int(state.answer[0, made]) == int(logits.argmax())
            assert float(state.confidence[0, made]) == pytest.approx(float(torch.softmax(logits, 0).max()), abs=1e-3)
            hidden = loop.read([int(logits.argmax())])
    # The loop also evaluates the flow path at t = 0.
    assert int(state.nfe) == loop.evaluations == 8 * 15


@pytest.mark.parametrize(
    ("settings", "each_token"),
    [({"steps": 15}, 15), ({"steps": 15, "solver": "euler"}, 15), ({"steps": 17, "solver": "rk4"}, 16), ({"steps": 1}, 1),
     ({"steps": 16, "solver": "heun2"}, 14), ({"steps": 15, "cfg_scale": 0.5, "flow_label": 1}, 1 + 2 * 13 + 1)],
    ids=str,
)  # fmt: skip
def test_evaluations_are_counted_as_they_are_made(folders, settings, each_token):
    state = decoded(load(folders[3]), PROMPTS[1:], [params(3, **settings)] * 2, eos_ids=())
    assert state.nfe.tolist() == [3 * each_token] * 2


SETS = {
    "midpoint": {},
    "sampled target": {"flow_temperature": 1.0, "flow_power": 1.0, "solver": "heun2"},
    "rk4 average": {"solver": "rk4", "steps": 9, "flow_estimate": "average_normalised", "flow_temperature": 0.5},
    "nearest": {"flow_estimate": "average_nearest", "flow_temperature": 0.5, "flow_end": 0.9},
    "adaptive": {"solver": "fehlberg2", "steps": 12, "flow_end": 0.99, "flow_tolerance": 1e-2, "flow_temperature": 1.0, "flow_power": 1.0},
    "bosh3": {"solver": "bosh3", "steps": 14, "flow_tolerance": 1e-2},
}


@pytest.mark.parametrize("name", SETS)
def test_a_row_does_not_know_its_batch_mates(folders, name):
    decoder = load(folders[3])
    each = [
        params(6, seed=3, cfg_scale=1.5, flow_label=2, **SETS[name]),
        params(3, seed=4, **SETS[name]),
        params(5, seed=5, flow_label=0, temperature=0.7, top_p=0.8, **SETS[name]),
    ]
    together = decoded(decoder, PROMPTS, each)
    for row, one in enumerate(each):
        alone = decoded(decoder, [PROMPTS[row]], [one])
        assert tokens(alone, 0) == tokens(together, row)
        R = alone.confidence.shape[1]
        assert torch.equal(alone.confidence[0], together.confidence[row, :R])
        assert int(alone.nfe[0]) == int(together.nfe[row])


@pytest.mark.parametrize("invariant", [True, False])
@pytest.mark.parametrize("name", SETS)
def test_a_captured_form_makes_the_same_tokens(folders, name, invariant):
    decoder = load(folders[3], invariant)
    each = [params(5, seed=seed, cfg_scale=0.8 * (seed == 1), flow_label=1, **SETS[name]) for seed in range(3)]
    eager, static = decoded(decoder, PROMPTS, each), decoded(decoder, PROMPTS, each, is_static=True)
    assert [tokens(eager, row) for row in range(3)] == [tokens(static, row) for row in range(3)]
    assert eager.nfe.tolist() == static.nfe.tolist()


@pytest.mark.parametrize("is_static", [False, True])
@pytest.mark.parametrize("name", SETS)
def test_a_step_reads_nothing_on_the_host_and_grows_nothing(folders, name, is_static):
    if not is_static and "solver" in SETS[name] and SETS[name]["solver"] in ("fehlberg2", "bosh3"):
        pytest.skip("an adaptive solver asks after each attempt which rows have arrived, unless it is captured")
    decoder, each = load(folders[3]), [params(8, seed=1, cfg_scale=1.0, flow_label=0, **SETS[name]), params(3, **SETS[name])]
    with torch.inference_mode():
        state = decoder.begin([canvas(PROMPTS[0], 8), canvas(PROMPTS[2], 3)], each, mask_id=NO_TOKEN, eos_ids=(2,), device="cpu")
        decoder.prime_(state)
        state.is_static = is_static
        decoder.step_(state)
        pointers, calls = addresses(state), set()
        for n in range(6):
            # Other requests' times push this one's out of what the model keeps, and a captured step still reads them where they were.
            for end in range(2):
                decoder.model.grid((0.5, 0.9 - (2 * n + end) / 100))
            with guarded() as guard:
                decoder.step_(state)
            calls.add(guard.calls)
        assert addresses(state) == pointers
        assert len(calls) == 1


def addresses(state) -> dict[str, int]:
    own = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    own |= {f"cache.{name}": getattr(state.memory.cache, name) for name in ("keys", "values", "positions")}
    own |= state.memory.grid._asdict() if state.memory.grid is not None else {}
    return {name: value.data_ptr() for name, value in own.items() if isinstance(value, torch.Tensor)}


@pytest.mark.parametrize("wants_loop", [False, True])
@pytest.mark.parametrize("name", ["midpoint", "sampled target", "adaptive"])
def test_captured_drivers_equal_the_eager_one_and_reuse_their_bucket(folders, name, wants_loop):
    decoder = load(folders[3])
    graphs = Graphs(decoder, LatentBuckets(512), SimulatedCapture(), has_loop=wants_loop)
    for seed in (0, 7):
        each = [params(count, seed=seed + count, flow_label=1, **SETS[name]) for count in (3, 2, 3)]
        eager = decoded(decoder, PROMPTS, each)
        with torch.inference_mode():
            canvases = [canvas(prompt, one.max_new_tokens) for prompt, one in zip(PROMPTS, each, strict=True)]
            host = decoder.begin(canvases, each, mask_id=NO_TOKEN, eos_ids=(2,), device="cpu")
            with CapturedDecode(graphs, host, wants_loop) as decode:
                list(decode.frames())
                outcomes = [decode.outcome(row) for row in range(3)]
        assert [list(outcome.token_ids) for outcome in outcomes] == [tokens(eager, row) for row in range(3)]
        assert [outcome.nfe for outcome in outcomes] == eager.nfe.tolist()
    assert len(graphs.buckets) == 1 and graphs.buckets[0].rows == 4


def test_guidance_of_zero_is_the_conditional_path_and_labels_matter(folders):
    decoder = load(folders[3])
    first = lambda **settings: decoded(decoder, PROMPTS[:1], [params(8, seed=2, **GREEDY, **settings)]).confidence  # noqa: E731
    assert not torch.equal(first(flow_label=0), first(flow_label=2))
    assert not torch.equal(first(flow_label=0), first(flow_label=0, cfg_scale=2.0))
    assert not torch.equal(first(), first(flow_label=0))


def test_an_end_token_ends_its_row_only(folders):
    decoder, each = load(folders[0]), [params(8, seed=seed) for seed in range(3)]
    free = decoded(decoder, PROMPTS, each, eos_ids=())
    end = tokens(free, 0)[2]
    state = decoded(decoder, PROMPTS, each, eos_ids=(end,))
    assert tokens(state, 0) == tokens(free, 0)[: tokens(free, 0).index(end) + 1]
    assert bool(state.stopped_early[0]) and int(state.row_steps[0]) == len(tokens(state, 0))
    for row in (1, 2):
        made = tokens(free, row)
        assert tokens(state, row) == (made[: made.index(end) + 1] if end in made else made)


@pytest.mark.parametrize(
    ("each", "words"),
    [
        ([params(), params(solver="rk4")], "prompt 1: solver is rk4, expected midpoint as of prompt 0"),
        ([params(), params(flow_label=3)], "prompt 1: flow_label is 3, expected 0 to 2"),
        ([params(cfg_scale=1.0), params()], "prompt 0: cfg_scale is 1 without flow_label"),
    ],
    ids=["solvers", "label", "guidance"],
)
def test_requests_that_cannot_hold_are_refused_by_name(folders, each, words):
    with pytest.raises(RequestError, match=words):
        decoded(load(folders[3]), PROMPTS[:2], each)


def test_a_draft_is_refused(folders):
    drafted = canvas(PROMPTS[0], 4)
    drafted.ids[-2] = 7
    with pytest.raises(RequestError, match="canvas 0: the answer holds given text"):
        load(folders[0]).begin([drafted], [params(4)], mask_id=NO_TOKEN, eos_ids=(), device="cpu")


def test_a_checkpoint_without_labels_has_none_to_choose(folders):
    with pytest.raises(RequestError, match="flow_label is 0, expected none: this checkpoint was trained without labels"):
        decoded(load(folders[0]), PROMPTS[:1], [params(flow_label=0)])
