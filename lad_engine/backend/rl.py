"""The rollout call of reinforcement-learning code for diffusion language models: token ids in, token ids and forward passes out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ..config import SamplingParams
from ..contracts import Canvas
from ..engine import Engine
from ..errors import ConfigError, RequestError
from .limits import Limits
from .sync_engine import SyncEngine

# LLaDA's names of how revealed positions are chosen.
SELECTIONS = {"low_confidence": "confidence", "random": "random"}


def generate(
    model: Engine | SyncEngine,
    prompt: Tensor,
    steps: int = 128,
    gen_length: int = 128,
    block_length: int = 128,
    temperature: float = 0.0,
    remasking: str = "low_confidence",
    threshold: float | None = None,
    factor: float | None = None,
    *,
    attention_mask: Tensor | None = None,
    seed: int = 0,
    adapter: str | None = None,
) -> tuple[Tensor, int]:
    """Answer a batch of tokenised prompts with LLaDA's sampler: equal shares per step, block by block, and what is revealed stays.

    Args:
        model: an engine, or a backend that is open already and may serve others meanwhile (a rollout that is called often wants one).
        prompt: `[B, L]` int64, or `[L]`. attention_mask: `[B, L]`, positions at 0 are padding and are left out of the forward passes.
        steps, gen_length, block_length: as LLaDA's, over the whole answer. temperature: 0 is greedy, else softmax(l / temperature).
        remasking: "low_confidence" or "random". threshold, factor: as Fast-dLLM's, the factor for masked-diffusion
            checkpoints alone.
        seed: row b is drawn from seed + b, whatever it is batched with. adapter: of an engine loaded with several by name.
    Returns:
        (output `[B, L + gen_length]` int64 on the prompt's device, the prompt in front as it came; nfe, the most forward passes any
        row took, which is what a batch costs).
    Raises:
        ConfigError: a setting is unknown, or the checkpoint's decoding family does not read it.
        RequestError: the shapes do not fit, or a row is longer than the model's window. Others as the backend's.
    """
    rows = prompt[None] if prompt.dim() == 1 else prompt
    kept = torch.ones_like(rows) if attention_mask is None else attention_mask
    if kept.numel() != rows.numel():
        raise RequestError(f"attention_mask: {tuple(kept.shape)}, expected {tuple(prompt.shape)} as the prompt. Give one value per token.")
    kept = kept.reshape(rows.shape)
    if rows.dim() != 2 or rows.is_floating_point() or not bool(kept.any(1).all()):
        raise RequestError(f"prompt: {tuple(prompt.shape)} {prompt.dtype}, expected [B, L] token ids with at least one kept in each row.")
    with _backend(model, len(rows)) as backend:
        params = _params(backend.engine, steps, gen_length, block_length, temperature, remasking, threshold, factor)
        canvases = [_canvas(ids[mask.bool()], gen_length, backend.engine.mask_id) for ids, mask in zip(rows, kept, strict=True)]
        each = [params.replace(seed=seed + index) for index in range(len(rows))]
        results = backend.generate(canvases, each, adapter)
    answers = torch.tensor([result.token_ids for result in results], dtype=rows.dtype, device=rows.device)
    output = torch.cat([rows, answers], 1)
    return output if prompt.dim() == 2 else output[0], max(result.nfe for result in results)


@contextlib.contextmanager
def _backend(model: Engine | SyncEngine, rows: int) -> Iterator[SyncEngine]:
    if isinstance(model, SyncEngine):
        yield model
        return
    with SyncEngine(model, Limits(max_rows=rows, max_running=rows, max_queue=rows)) as backend:
        yield backend


def _canvas(prompt: Tensor, gen_length: int, mask_id: int | None) -> Canvas:
    if mask_id is None:
        raise ConfigError("mask_token is None, expected a piece to hide answer positions with. Load the engine with one.")
    ids = np.concatenate([prompt.cpu().numpy().astype(np.int64), np.full(gen_length, mask_id, np.int64)])
    return Canvas(ids, np.arange(len(ids)) >= len(prompt), len(prompt))


def _params(
    engine: Engine,
    steps: int,
    gen_length: int,
    block_length: int,
    temperature: float,
    remasking: str,
    threshold: float | None,
    factor: float | None,
) -> SamplingParams:
    if remasking not in SELECTIONS:
        raise ConfigError(f"remasking is {remasking!r}, expected one of {', '.join(SELECTIONS)}.")
    rule = {"lad": "remasking", "masked": "reveal"}.get(engine.family)
    if rule is None:
        raise ConfigError(f"generate: this checkpoint decodes as {engine.family}, expected lad or masked. Use Engine.generate.")
    return SamplingParams(
        max_new_tokens=gen_length,
        steps=steps,
        block_length=block_length,
        temperature=temperature,
        top_k=0,
        selection=SELECTIONS[remasking],
        **{rule: "transfer"},
        **{name: value for name, value in (("threshold", threshold), ("factor", factor)) if value is not None},
        profile="rollout",
    )
