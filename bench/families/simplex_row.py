"""Simplex diffusion (TESS 2) against its reference loop: time and the memory each takes beyond the model."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from bench.families.simplex_loop import LoopModel, tess_loop
from bench.timing import interleaved_us, release
from lad_engine.config import SamplingParams
from lad_engine.contracts import Canvas, ModelFacts, RopeFacts
from lad_engine.denoisers.simplex import SimplexDenoiser
from lad_engine.model.language_model import LanguageModel
from lad_engine.model.simplex_model import SimplexModel
from lad_engine.model.transformer import Transformer
from lad_engine.ops import select_ops
from lad_engine.runtime.runner import run

# layers, D, F, H, G, K, V, tied head: TESS 2 as published, and the adaptation of bench/families/simplex.toml
SIZES = {
    "tiny": (2, 64, 128, 4, 2, 16, 512, False),
    "SmolLM2-135M": (30, 576, 1536, 9, 3, 64, 49152, True),
    "TESS2-7B": (32, 4096, 14336, 32, 8, 128, 32001, False),
}
PAD_ID = 2
KIB, FLOAT_BYTES = 1024, 4
# Writing this to the process's clear_refs makes its peak resident size begin again (proc(5)).
RESET_PEAK = "5"


def simplex_rows(options: argparse.Namespace) -> Iterator[dict]:
    """Yield one row per model, transition and step count."""
    for name in options.models:
        model = random_simplex_model(name, getattr(torch, options.dtype), options.device)
        for steps in options.steps:
            for transition in ("ddpm", "ddim"):
                yield _row(model, name, transition, steps, options)
        del model
        release()


def random_simplex_model(name: str, dtype: torch.dtype, device: str) -> LanguageModel:
    """Return a model of a named shape with random weights and a time vector."""
    layers, D, F, H, G, K, V, is_tied = SIZES[name]
    facts = ModelFacts(
        family="mistral", width=D, mlp_width=F, layers=layers, query_heads=H, kv_heads=G, head_width=K, vocab_size=V, max_positions=2048,
        norm_eps=1e-5, rope=RopeFacts(), has_qkv_bias=False, has_tied_head=is_tied, bos_id=1, eos_ids=(2,), name=name, decoding="simplex",
        mask_id=PAD_ID, predicts_next_token=True, extra={"has_time_embedding": True},
    )  # fmt: skip
    transformer = Transformer(facts, select_ops("auto", device=device), dtype, device).eval()
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for slot in transformer.slots().values():
            if slot.ndim == 2:
                slot.normal_(0.0, slot.shape[1] ** -0.5, generator=generator)
            else:
                slot.fill_(1.0)
    transformer.head.predicts_next_token = True
    return LanguageModel(transformer)


@torch.inference_mode()
def _row(model: LanguageModel, name: str, transition: str, steps: int, options: argparse.Namespace) -> dict:
    B, prompt, answer, transformer = options.batch, options.prompt, options.answer, model.transformer
    vocabulary = transformer.facts.vocab_size
    ids = np.random.default_rng(0).integers(10, min(vocabulary, 500), (B, prompt + answer))
    ids[:, prompt:] = PAD_ID
    is_open = np.arange(prompt + answer) >= prompt
    canvases = [Canvas(row, is_open, prompt) for row in ids]
    params = [SamplingParams(max_new_tokens=answer, steps=steps, top_p=0.99, transition=transition, seed=seed) for seed in range(B)]
    denoiser = SimplexDenoiser(SimplexModel(model), transformer.ops)

    def ours() -> None:
        run(denoiser, denoiser.begin(canvases, params, mask_id=PAD_ID, eos_ids=(2,), device=options.device))

    given, span = torch.from_numpy(ids).to(options.device), torch.from_numpy(is_open).to(options.device).expand(B, -1)
    loop_model = LoopModel(
        transformer.embed,
        transformer.time_embed,
        lambda x: transformer.head.logits(transformer(given, embedded=x.to(transformer.embed.dtype)).flatten(0, 1)).view(*given.shape, -1),
    )

    def transcription() -> None:
        tess_loop(loop_model, given, span, steps, use_ddim=transition == "ddim")

    loops = {"ours": ours, "transcription": transcription}
    times = interleaved_us(loops, options.repeats, warm_up=0)
    peaks = {loop: peak_mib(function, options.device) for loop, function in loops.items()}
    mine, theirs = times["ours"]["median_us"], times["transcription"]["median_us"]
    return {
        "family": "simplex",
        "loop": transition,
        "model": name,
        "dtype": options.dtype,
        "batch": B,
        "canvas": prompt + answer,
        "answer_rows": answer,
        "steps": steps,
        "times": times,
        "nfe": steps,
        "ms_per_step": mine / 1e3 / steps,
        "tokens_per_s": B * answer / mine * 1e6,
        "head_rows_per_step": B * answer,
        "peak_mib": peaks["ours"],
        # What one fp32 number per position and vocabulary entry takes; the transcription holds several of these.
        "noise_mib": B * (prompt + answer) * vocabulary * FLOAT_BYTES / KIB**2,
        "ratios": {"transcription": theirs / mine},
        "transcription": {
            "nfe": steps,
            "ms_per_step": theirs / 1e3 / steps,
            "tokens_per_s": B * answer / theirs * 1e6,
            "head_rows_per_step": B * (prompt + answer),
            "peak_mib": peaks["transcription"],
        },
    }


def peak_mib(function: Callable[[], None], device: str) -> float | None:
    """Return the most memory a call takes beyond what is held before it; None where the system does not say."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return (torch.cuda.max_memory_allocated() - before) / KIB**2
    try:
        Path("/proc/self/clear_refs").write_text(RESET_PEAK, encoding="ascii")
        before = _status_kib("VmRSS")
        function()
        return (_status_kib("VmHWM") - before) / KIB
    except OSError:
        return None


def _status_kib(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
