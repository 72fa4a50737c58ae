"""Checks before the first request: does this adapter belong to this base and tokenizer, and does it do anything."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..contracts import AdapterFacts, ModelFacts
from ..errors import AdapterError
from ..model.transformer import Transformer
from .attach import attach, check_fit
from .low_rank import Adapter
from .probe import Encoder, probe_canvases, probe_logits
from .targets import linear_shapes


@dataclass(frozen=True)
class PreflightReport:
    """What preflight found: the adapter with its mask id filled in, its size, and the largest logit change on the probe."""

    adapter: Adapter
    parameters: int
    logit_change: float


def preflight(transformer: Transformer, codec: Encoder, adapter: Adapter, *, shapes_only: bool = False) -> PreflightReport:
    """Check `adapter` against a clean base; the decoder is left bit for bit as it was.

    Args:
        codec: the base's tokenizer. shapes_only: accept another base of the same shapes (a recorded fingerprint is not compared).
    Raises:
        AdapterError: one sentence that names the first check that fails.
    """
    facts, base = adapter.facts, transformer.facts
    if not shapes_only:
        _check_fingerprint(facts, base)
    check_fit(transformer, adapter)
    _check_complete(adapter, base)
    _check_copies(adapter, transformer)
    adapter = adapter.with_facts(mask_id=mask_id_of(facts, codec, base.vocab_size))
    (canvas,) = probe_canvases(codec, adapter.facts.mask_id, base.max_positions, count=1)
    before = probe_logits(transformer, canvas)
    attached = attach(transformer, adapter)
    try:
        after = probe_logits(transformer, canvas)
    finally:
        attached.detach()
    _check_finite(adapter, base, before, after)
    change = float((after - before).abs().max())
    if change == 0.0:
        raise AdapterError(
            f"{facts.name}: the logits are the same with and without it, expected a change. It is untrained or its weights are zero."
        )
    return PreflightReport(adapter, adapter.parameters, change)


def mask_id_of(facts: AdapterFacts, codec: Encoder, vocab_size: int) -> int:
    """The one id of the adapter's mask token in this tokenizer; raise AdapterError when it is not one, or not the recorded one."""
    ids = list(codec.encode(facts.mask_token))
    if len(ids) != 1:
        raise AdapterError(
            f"{facts.name}: mask token {facts.mask_token!r} is {len(ids)} tokens of this tokenizer {ids}, expected exactly 1. "
            "Load the base it was made for, or train with a mask token that is one."
        )
    if facts.mask_id not in (-1, ids[0]):
        raise AdapterError(
            f"{facts.name}: mask_id is {facts.mask_id}, expected {ids[0]} ({facts.mask_token!r} in this tokenizer). "
            "Load the base it was made for."
        )
    if ids[0] >= vocab_size:
        raise AdapterError(
            f"{facts.name}: mask token {facts.mask_token!r} is id {ids[0]}, expected below the base's vocabulary of {vocab_size}."
        )
    return ids[0]


def _check_fingerprint(facts: AdapterFacts, base: ModelFacts) -> None:
    # an empty fingerprint means nobody recorded one, as in every PEFT folder not written by us
    if facts.base_fingerprint and base.fingerprint and facts.base_fingerprint != base.fingerprint:
        raise AdapterError(
            f"{facts.name}: base is {base.name or 'unnamed'} (fingerprint {base.fingerprint[:12]}), expected the one it was made for, "
            f"{facts.base_name or 'unnamed'} ({facts.base_fingerprint[:12]}). Load that base, or accept any of these shapes (--any-base)."
        )


def _check_complete(adapter: Adapter, base: ModelFacts) -> None:
    if adapter.expects is None:
        return
    wanted = [module for module in linear_shapes(base) if adapter.expects(module)]
    missing = [module for module in wanted if module not in adapter.weights]
    if missing:
        raise AdapterError(
            f"{adapter.facts.name}: target_modules names {len(wanted)} modules of this base and the file adapts {len(adapter.weights)}, "
            f"{missing[0]} is missing. The file is incomplete or belongs to a smaller base."
        )


def _check_copies(adapter: Adapter, transformer: Transformer) -> None:
    # not transformer.projection("lm_head"): that would untie a tied head
    weights = {"model.embed_tokens.weight": transformer.embed, "lm_head.weight": transformer.head.projection.weight}
    for name, copy in adapter.base_copies.items():
        weight = weights[name].detach().float().cpu()
        # the copy may have been through another 16-bit dtype than the base: half a percent is one bf16 rounding
        if copy.shape != weight.shape or not torch.allclose(copy.float(), weight, rtol=1e-2, atol=1e-4):
            raise AdapterError(
                f"{adapter.facts.name}: {name} stored in the adapter is not the base's own, expected an unchanged copy. "
                "The adapter retrained or resized it, or belongs to another base."
            )


def _check_finite(adapter: Adapter, base: ModelFacts, before: Tensor, after: Tensor) -> None:
    if not torch.isfinite(before).all():
        raise AdapterError(
            f"{base.name or 'base'}: the logits of the base alone are not finite on the probe, expected numbers. Use another dtype or base."
        )
    if torch.isfinite(after).all():
        return
    broken = [m for m, pair in adapter.weights.items() if not (torch.isfinite(pair.a).all() and torch.isfinite(pair.b).all())]
    broken += [m for m, norm in adapter.norms.items() if not torch.isfinite(norm).all()]
    cause = f"{broken[0]} holds values that are not numbers" if broken else "the values overflow in this dtype"
    raise AdapterError(
        f"{adapter.facts.name}: the logits are not finite on the probe ({cause}), expected numbers. Do not use this adapter file."
    )
