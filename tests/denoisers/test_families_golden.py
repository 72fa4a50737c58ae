"""Golden values of the three specifications that no other test holds: published counts and defaults, and the law of the reveal steps."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from bench_on_path import ROOT
from masked_stub import SureModel, begin
from stub_model import canvas
from tiny_simplex import FIELDS

from lad_engine.config import SamplingParams
from lad_engine.contracts import ModelFacts, RopeFacts
from lad_engine.engine import Engine
from lad_engine.families import check_params
from lad_engine.model.facts import facts_from_config
from lad_engine.model.latent_facts import LatentFacts
from lad_engine.model.latent_path import LatentPath, LatentTransformer
from lad_engine.model.simplex_facts import simplex_facts
from lad_engine.model.transformer import Transformer
from lad_engine.ops import select_ops
from lad_engine.profiles import profile_params
from lad_engine.runtime.runner import run
from lad_engine.samplers.ode_solvers import integrate
from lad_engine.schedules.flow_time import FIRST_STEP, TABLEAUX, FlowPlan, evaluations_for
from lad_engine.schedules.gaussian import plan_simplex
from lad_engine.training.config import TrainConfig

# Of a right implementation, one run in a hundred thousand fails a test at this bound; the draws are fixed, so it fails always or never.
FALSE_ALARM_Z = 4.42


def chi_square_z(counts: torch.Tensor, expected: float) -> float:
    """Return how many deviations the chi-square of counts with equal expectations lies above its mean."""
    freedom = counts.numel() - 1
    return float(((counts - expected) ** 2 / expected).sum() - freedom) / math.sqrt(2 * freedom)


def reveal_steps(rows: int, positions: int, steps: int) -> torch.Tensor:
    """Return the step `[rows, positions]` at which the decoder revealed each position, one request (and seed) a row."""
    params = [
        SamplingParams(max_new_tokens=positions, steps=steps, top_k=0, reveal="random", early_stop=False, seed=i) for i in range(rows)
    ]
    denoiser, state = begin(SureModel(), [canvas(2, positions)] * rows, params)
    assert run(denoiser, state) == steps
    return state.first_set[:, :positions]


def test_reveal_steps_of_decodes_are_uniform_and_independent():
    rows, positions, steps = 400, 32, 8
    found = reveal_steps(rows, positions, steps)
    counts = torch.nn.functional.one_hot(found.long(), steps).double()
    # Uniform over all, in every position, in every request; expected reveals a step are N / T.
    assert chi_square_z(counts.sum((0, 1)), rows * positions / steps) < FALSE_ALARM_Z
    assert chi_square_z(counts.sum(0), rows / steps) < FALSE_ALARM_Z
    assert chi_square_z(counts.sum(1), positions / steps) < FALSE_ALARM_Z
    # Neighbours, and the same position of neighbouring seeds, know nothing of each other.
    for first, second in ((found[:, :-1], found[:, 1:]), (found[:-1], found[1:])):
        pairs = (first * steps + second).flatten().long().bincount(minlength=steps * steps).double()
        assert chi_square_z(pairs, first.numel() / steps**2) < FALSE_ALARM_Z
    # The statistic sees a generator that draws one step less often than the others.
    biased = torch.where(found == steps - 1, 0, found)
    assert chi_square_z(torch.nn.functional.one_hot(biased.long(), steps).double().sum((0, 1)), rows * positions / steps) > 100


def test_a_text_is_scored_by_32_masked_copies_unless_told_otherwise():
    assert inspect.signature(Engine.score).parameters["copies"].default == 32


def test_simplex_defaults_are_the_published_ones():
    params = profile_params("tess2", {})
    asked = (params.steps, params.top_p, params.temperature, params.top_p_rule, params.transition, params.reward_scale)
    assert asked == (100, 0.99, 1.0, "keep_crossing", "ddpm", 0.0)
    check_params("simplex", params)
    assert profile_params("tess2_code", {}).reward_scale == 0.25
    plan = plan_simplex(100)
    assert len(plan.time) == 100 and plan.time.tolist() == pytest.approx([t / 100 for t in range(99, -1, -1)])


def test_a_tess_of_mistral_size_adds_one_vector_and_one_pad():
    config = {
        "model_type": "mistral", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "intermediate_size": 14336, "vocab_size": 32001, "rms_norm_eps": 1e-5, "max_position_embeddings": 32768, "sliding_window": 4096,
        "tie_word_embeddings": False, **FIELDS, "pad_token_id": 32000,
    }  # fmt: skip
    base = facts_from_config(config, {}, where="config.json", name="tess2")
    facts = simplex_facts(base, config, ["timestep_embed.weight"], "config.json")
    assert facts.extra["simplex_value"] == 5.0 and facts.mask_id == 32000
    sizes = [sum(one.numel() for one in Transformer(each, select_ops("reference"), torch.bfloat16, "meta").parameters())
             for each in (base, facts)]  # fmt: skip
    # Mistral-7B's 7,241,732,096 and two rows of the added [PAD] (embedding and head); w_t is one more vector.
    assert sizes == [7_241_732_096 + 2 * 4096, 7_241_732_096 + 3 * 4096]


def one_b(**latent: object) -> ModelFacts:
    return ModelFacts(
        family="llama", width=2048, mlp_width=8192, layers=16, query_heads=32, kv_heads=8, head_width=64, vocab_size=128256,
        max_positions=16, norm_eps=1e-5, rope=RopeFacts(), has_qkv_bias=False, has_tied_head=True, bos_id=None, eos_ids=(2,),
        decoding="latent_ode", extra=LatentFacts(**latent).to_extra(),
    )  # fmt: skip


def flow_parameters(**latent: object) -> int:
    flow: LatentPath = LatentTransformer(one_b(**latent), select_ops("reference"), torch.bfloat16, "meta").flow
    return sum(one.numel() for one in flow.parameters())


def test_a_flow_path_with_its_own_weights_and_a_table_of_classes_have_the_published_sizes():
    # The paper's 992 M of Llama-3.2-1B: 73.34 M less pairs of rank 32, and q, o, gate, up and down once more.
    pairs = 16 * 32 * (2 * (2048 + 2048) + 3 * (2048 + 8192))
    assert flow_parameters(has_full_weights=True, rank=0) == 73_344_256 - pairs + 16 * (2 * 2048**2 + 3 * 2048 * 8192) == 992_945_408
    # (C + 1) x 256 for the labels math, coding and general
    assert flow_parameters(classes=3) == 73_344_256 + 4 * 256


STAGES = {"euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4}


@pytest.mark.parametrize("solver", STAGES)
def test_a_token_takes_stages_times_intervals_plus_one_evaluations(solver):
    for endpoints in (2, 5, 8, 15, 64):
        evaluations = STAGES[solver] * (endpoints - 1) + 1
        assert evaluations_for(solver, endpoints) == evaluations == FlowPlan(solver, evaluations).evaluations
    # Unasked of these is the velocity at t = 1, which only heun2 and rk4 touch.
    assert FlowPlan(solver, evaluations).asked == evaluations - 1 - (solver in ("heun2", "rk4"))


@pytest.mark.parametrize("attempts", [1, 58, 59])
def test_an_adaptive_pair_takes_one_evaluation_two_an_attempt_and_the_one_that_reads_the_token(attempts):
    plan = FlowPlan("fehlberg2", 1 + 2 * attempts + 1)
    assert (plan.attempts, plan.evaluations) == (attempts, 2 + 2 * attempts)
    assert FIRST_STEP == 0.05 and profile_params("l2d_adaptive", {}).flow_tolerance == 1e-5


def test_the_midpoint_ends_beyond_its_last_pick_where_two_picks_differ():
    """From [a, 1] with picks v at a and w in the middle, the end is 2 w - v; with one pick throughout it is that pick exactly."""
    first, second = torch.tensor([[3.0, -1.0]], dtype=torch.float64), torch.tensor([[0.5, 2.0]], dtype=torch.float64)
    plan = FlowPlan("midpoint", 15)

    def end(pick):
        def field(stage):
            t = plan.stages[stage][0]
            return lambda x: (pick(stage) - x) / (1 - t)

        return integrate(field, torch.full((1, 2), 64.0, dtype=torch.float64), TABLEAUX["midpoint"], plan.intervals)

    last = len(plan.stages) - 1
    assert torch.allclose(end(lambda stage: second if stage == last else first), 2 * second - first, atol=1e-9)
    assert torch.allclose(end(lambda stage: first), first, atol=1e-9)


def test_the_public_defaults_of_the_flow_path_are_ours():
    latent = LatentFacts()
    assert (latent.flow_width, latent.sigma, latent.rank, latent.alpha, latent.freezes_modulation) == (256, 64.0, 32, 32.0, False)
    config = TrainConfig.load(ROOT / "bench" / "families" / "latent.toml", {})
    found = (config.rank, config.alpha, config.beta1, config.beta2, config.weight_decay, config.clip)
    assert found == (32, 32.0, 0.9, 0.95, 0.01, 1.0) and (config.flow_times, config.class_dropout) == ("uniform", 0.2)
