"""L2D per token: our step against its reference loop on the same weights."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from bench.families.latent_loop import ReferenceLoop
from bench.random_model import MODELS, random_ids
from bench.timing import interleaved_us, release
from lad_engine.config import SamplingParams
from lad_engine.contracts import Canvas
from lad_engine.denoisers.latent_ode import LatentOdeDecoder
from lad_engine.model.language_model import LanguageModel
from lad_engine.model.latent_facts import LatentFacts
from lad_engine.model.latent_model import LatentModel
from lad_engine.model.latent_path import LatentTransformer
from lad_engine.ops import select_ops
from lad_engine.runtime.runner import run
from lad_engine.samplers.purposes import FLOW_START

# The published budget: midpoint on 8 times.
EVALUATIONS, ENDPOINTS = 15, 8
NO_TOKEN = -1


def latent_rows(options: argparse.Namespace) -> Iterator[dict]:
    """Yield one row per model; steps are evaluations per token, always the published 15."""
    for name in options.models:
        yield _row(name, options)
        release()


def random_latent(name: str, dtype: torch.dtype, device: str) -> LatentTransformer:
    """Return a base of a published shape and its flow path with random weights."""
    small = {"flow_width": 32, "rank": 4, "alpha": 4.0} if name == "tiny" else {}
    facts = replace(MODELS[name], decoding="latent_ode", extra=LatentFacts(**small).to_extra())
    model = LatentTransformer(facts, select_ops("auto", device=device), dtype, device)
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for slot_name, slot in model.slots().items():
            if slot.ndim == 2:
                # Small modulation, as after training: a random one of unit size would blow the stream up.
                size = 0.1 if "modulation_head.mlp.2" in slot_name else 1.0
                slot.normal_(0.0, size * slot.shape[0 if slot_name.endswith((".A", ".B")) else 1] ** -0.5, generator=generator)
            else:
                slot.fill_(1.0 if slot_name.endswith("norm.weight") else 0.0)
    return model.eval()


@torch.inference_mode()
def _row(name: str, options: argparse.Namespace) -> dict:
    prompt, answer = options.prompt, options.answer
    transformer = random_latent(name, getattr(torch, options.dtype), options.device)
    decoder = LatentOdeDecoder(LatentModel(LanguageModel(transformer)), transformer.ops)
    ids = random_ids(transformer.facts, 1, prompt)[0].tolist()
    canvas = Canvas(np.array(ids + [NO_TOKEN] * answer), np.arange(prompt + answer) >= prompt, prompt)
    params = SamplingParams(max_new_tokens=answer, steps=EVALUATIONS, temperature=0.0, top_k=1)
    tensors, made = dict(transformer.slots()), {}

    def ours() -> None:
        state = decoder.begin([canvas], [params], mask_id=NO_TOKEN, eos_ids=(), device=options.device)
        run(decoder, state)
        made["ours"], made["nfe"], made["noise"] = state.answer[0].tolist(), int(state.nfe[0]), state

    def transcription() -> None:
        loop, tokens = ReferenceLoop(transformer.facts, tensors, prompt + answer), []
        hidden = loop.read(ids)
        for index in range(answer):
            # The same noise as ours, so that both walk the same path.
            state = made["noise"]
            u = decoder.ops.uniform(state.seeds, state.components, torch.full_like(state.seeds, index), FLOW_START)[0]
            tokens.append(int(loop.token(hidden, torch.special.ndtri(u) * decoder.model.sigma, ENDPOINTS)[0].argmax()))
            hidden = loop.read(tokens[-1:])
        made["transcription"] = tokens

    times_of_grid = torch.rand(EVALUATIONS - 1, device=options.device)
    once = {"once": lambda: (transformer.flow.table(), transformer.flow.conditions(times_of_grid))}
    tables = interleaved_us(once, 1, warm_up=0)
    ours()
    times = interleaved_us({"ours": ours, "transcription": transcription}, options.repeats, warm_up=0)
    mine, theirs = times["ours"]["median_us"], times["transcription"]["median_us"]
    return {
        "family": "latent_ode",
        "loop": "midpoint",
        "model": name,
        "dtype": options.dtype,
        "batch": 1,
        "canvas": prompt + answer,
        "answer_rows": answer,
        "steps": EVALUATIONS,
        "times": times,
        "table_s": tables["once"]["median_us"] / 1e6,
        "nfe": made["nfe"],
        "ms_per_step": mine / 1e3 / answer,
        "tokens_per_s": answer / mine * 1e6,
        "head_rows_per_step": made["nfe"] / answer,
        "same_tokens": made["ours"] == made["transcription"],
        "ratios": {"transcription": theirs / mine},
        "transcription": {
            "nfe": EVALUATIONS * answer,
            "ms_per_step": theirs / 1e3 / answer,
            "tokens_per_s": answer / theirs * 1e6,
            "head_rows_per_step": EVALUATIONS,
        },
    }
