"""The steps of loading an engine: what the operator left open, the base's weights, and the adapter on them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from .adapters.attach import attach, merge
from .adapters.low_rank import Adapter
from .adapters.preflight import preflight
from .config import EngineConfig, SamplingParams
from .contracts import AdapterFacts, ModelFacts
from .errors import AdapterError, ConfigError, RequestError
from .model.backbones import backbone_of
from .model.transformer import Transformer
from .model.weights import Checkpoint
from .ops import OpSet
from .placement import native_dtype, resolve_device
from .text.codec import TextCodec

Progress = Callable[[str, int, int], None]
NO_TOKEN = -1


def resolve_config(config: EngineConfig, settings: dict[str, Any]) -> EngineConfig:
    """Lay `settings` over the operator's choices and decide what "auto" leaves open: device, dtype, batch invariance."""
    known = {field.name for field in dataclasses.fields(EngineConfig)}
    unknown = sorted(set(settings) - known)
    if unknown:
        raise ConfigError(f"{unknown[0]} is not an engine setting, expected one of {', '.join(sorted(known))}.")
    config = dataclasses.replace(config, **settings)
    device = resolve_device(config.device)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    dtype = config.dtype if config.dtype != "auto" else str(native_dtype(device)).removeprefix("torch.")
    invariant = device.type == "cpu" if config.batch_invariant is None else config.batch_invariant
    return dataclasses.replace(config, device=str(device), dtype=dtype, batch_invariant=invariant)


def load_transformer(checkpoint: Checkpoint, ops: OpSet, config: EngineConfig, progress: Progress | None) -> Transformer:
    """Read the base's weights into a decoder on the device."""
    names = checkpoint.names()

    def counted() -> Iterator[tuple[str, torch.Tensor]]:
        for done, pair in enumerate(checkpoint.tensors(), start=1):
            yield pair
            if progress is not None:
                progress("loading weights", done, len(names))

    build = backbone_of(checkpoint.facts)
    transformer = build.from_tensors(checkpoint.facts, counted(), ops, getattr(torch, config.dtype), config.device)
    transformer.head.predicts_next_token = checkpoint.facts.predicts_next_token
    return transformer


def checked_adapter(adapter: Adapter, transformer: Transformer, codec: TextCodec, config: EngineConfig, is_default: bool) -> Adapter:
    """Return the adapter as preflight completes it; refuse one that does not fit the base or what the operator chose."""
    if config.mask_token not in (EngineConfig.mask_token, adapter.facts.mask_token):
        raise ConfigError(
            f"mask_token is {config.mask_token!r}, but {adapter.facts.name} was trained with {adapter.facts.mask_token!r}. Leave it out."
        )
    try:
        return preflight(transformer, codec, adapter, shapes_only=config.any_base).adapter
    except AdapterError as error:
        if not is_default:
            raise
        raise AdapterError(f"{error} The default adapter is for the default base only: give --adapter PATH, or --adapter none.") from error


def adapt(transformer: Transformer, adapter: Adapter, config: EngineConfig) -> None:
    """Put a checked adapter on the decoder, merged or beside its weights."""
    if config.merge:
        # Kept originals would double the memory of the adapted weights; `drift` reads the base again instead.
        merge(transformer, adapter, keep_originals=False)
    else:
        attach(transformer, adapter)
    transformer.head.predicts_next_token = adapter.facts.predicts_next_token


def mask_id_of(codec: TextCodec, config: EngineConfig, facts: ModelFacts) -> int | None:
    """Return the id of a hidden position: the checkpoint's own, else its tokenizer's, else the token the operator named."""
    if facts.decoding == "latent_ode":
        if config.mask_token not in (None, EngineConfig.mask_token):
            raise ConfigError(f"mask_token is given, but this checkpoint decodes as {facts.decoding}, which hides nothing. Leave it out.")
        # It writes from left to right: nothing is hidden from it, and what is not written yet is no token.
        return NO_TOKEN
    if facts.decoding != "lad" and config.mask_token in (None, EngineConfig.mask_token):
        own = facts.mask_id if facts.mask_id is not None else codec.mask_id
        if own is not None:
            return own
    return None if config.mask_token is None else codec.piece_id(config.mask_token)


def each_params(params: SamplingParams | Sequence[SamplingParams], prompts: Sequence[Any]) -> list[SamplingParams]:
    """Return one SamplingParams per prompt; what is shared is repeated."""
    if not prompts:
        raise RequestError("prompts: the list is empty, expected at least one prompt.")
    each = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
    if len(each) != len(prompts):
        raise ConfigError(f"params: {len(each)} given for {len(prompts)} prompts, expected one or as many as prompts.")
    return each


def eos_ids_of(facts: ModelFacts, adapter: AdapterFacts | None) -> tuple[int, ...]:
    """Return the EOS ids of an adapter on a base."""
    # The adapter's own EOS first: it is the one the bias acts on; the base's others still end an answer.
    own = () if adapter is None or adapter.eos_id is None else (adapter.eos_id,)
    return own + tuple(eos for eos in facts.eos_ids if eos not in own)
