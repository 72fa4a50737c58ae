"""Masked diffusion against its reference loop: random reveal (DiffuGPT, DiffuLLaMA) and the confidence rule."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np
import torch

from bench.families.masked_loop import confidence_reveal, random_reveal, shifted
from bench.timing import interleaved_us, release
from lad_engine.config import SamplingParams
from lad_engine.contracts import Canvas, ModelFacts, RopeFacts
from lad_engine.denoisers.masked import MaskedDenoiser
from lad_engine.model.backbones import backbone_of
from lad_engine.model.language_model import LanguageModel
from lad_engine.ops import OpSet, select_ops
from lad_engine.runtime.runner import run

_GPT2 = {"family": "gpt2", "norm_eps": 1e-5, "rope": RopeFacts(), "has_qkv_bias": True, "has_tied_head": True}
_LLAMA2 = {"family": "llama", "norm_eps": 1e-5, "rope": RopeFacts(), "has_qkv_bias": False, "has_tied_head": False}
# layers, D, F, H, V, mask id: the published checkpoints' own
SIZES = {
    "tiny": (2, 64, 256, 4, 512, 7, _GPT2),
    "DiffuGPT-S": (12, 768, 3072, 12, 50257, 10541, _GPT2),
    "DiffuGPT-M": (24, 1024, 4096, 16, 50258, 50257, _GPT2),
    "DiffuLLaMA": (32, 4096, 11008, 32, 32000, 811, _LLAMA2),
}


def masked_rows(options: argparse.Namespace) -> Iterator[dict]:
    """Yield one row per model, rule and step count."""
    for name in options.models:
        model, mask_id, vocabulary = random_masked_model(name, getattr(torch, options.dtype), options.device)
        for steps in options.steps:
            for reveal in ("random", "confidence"):
                yield _row(model, mask_id, vocabulary, name, reveal, steps, options)
        del model
        release()


def random_masked_model(name: str, dtype: torch.dtype, device: str) -> tuple[LanguageModel, int, int]:
    """Return a model of a published shape with random weights, its mask id and its vocabulary."""
    layers, D, F, H, V, mask_id, traits = SIZES[name]
    facts = ModelFacts(
        name=name, width=D, mlp_width=F, layers=layers, query_heads=H, kv_heads=H, head_width=D // H, vocab_size=V, max_positions=2048,
        bos_id=0, eos_ids=(2,), decoding="masked", predicts_next_token=True, mask_id=mask_id, **traits,
    )  # fmt: skip
    ops: OpSet = select_ops("auto", device=device)
    transformer = backbone_of(facts)(facts, ops, dtype, device).eval()
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for slot_name, slot in transformer.slots().items():
            if slot.ndim == 2:
                slot.normal_(0.0, slot.shape[1] ** -0.5, generator=generator)
            else:
                slot.fill_(0.0 if slot_name.endswith(".bias") else 1.0)
    transformer.head.predicts_next_token = True
    return LanguageModel(transformer), mask_id, V


@torch.inference_mode()
def _row(model: LanguageModel, mask_id: int, vocabulary: int, name: str, reveal: str, steps: int, options: argparse.Namespace) -> dict:
    B, prompt, answer = options.batch, options.prompt, options.answer
    ids = np.random.default_rng(0).integers(10, min(vocabulary, 500), (B, prompt + answer))
    ids[:, prompt:] = mask_id
    is_open = np.arange(prompt + answer) >= prompt
    canvases = [Canvas(row, is_open, prompt) for row in ids]
    rule = {"temperature": 0.95, "top_k": 0, "top_p": 0.9, "confidence": "kept"} if reveal == "random" else {"temperature": 1.0, "top_k": 1}
    # Every pass is made on both sides, also one that reveals nothing.
    params = [SamplingParams(max_new_tokens=answer, steps=steps, reveal=reveal, early_stop=False, seed=seed, **rule) for seed in range(B)]
    denoiser, counted = MaskedDenoiser(model, model.transformer.ops), {}

    def ours() -> None:
        state = denoiser.begin(canvases, params, mask_id=mask_id, eos_ids=(2,), device=options.device)
        counted["nfe"] = run(denoiser, state)
        counted["rows"] = sum(map(sum, state.reads))

    head, given = model.head, torch.from_numpy(ids).to(options.device)
    fixed = torch.from_numpy(~is_open).to(options.device).expand(B, -1)
    logits_of = shifted(lambda x: head.logits(model.hidden(x).flatten(0, 1)).view(*x.shape, -1))
    # The draws of the transcription are made where its tensors lie.
    generator = torch.Generator(options.device).manual_seed(0)

    def transcription() -> None:
        if reveal == "random":
            random_reveal(logits_of, given, fixed, mask_id, steps=steps, temperature=0.95, top_p=0.9, generator=generator)
        else:
            confidence_reveal(logits_of, given, fixed, mask_id, steps=steps)

    times = interleaved_us({"ours": ours, "transcription": transcription}, options.repeats, warm_up=0)
    mine, theirs = times["ours"]["median_us"], times["transcription"]["median_us"]
    return {
        "family": "masked",
        "loop": reveal,
        "model": name,
        "dtype": options.dtype,
        "batch": B,
        "canvas": prompt + answer,
        "answer_rows": answer,
        "steps": steps,
        "times": times,
        "nfe": counted["nfe"],
        "ms_per_step": mine / 1e3 / counted["nfe"],
        "tokens_per_s": B * answer / mine * 1e6,
        "head_rows_per_step": counted["rows"] / counted["nfe"],
        "ratios": {"transcription": theirs / mine},
        "transcription": {
            "nfe": steps,
            "ms_per_step": theirs / 1e3 / steps,
            "tokens_per_s": B * answer / theirs * 1e6,
            "head_rows_per_step": B * (prompt + answer),
        },
    }
