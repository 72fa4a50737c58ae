"""From what users asked to the tables by which the head chooses tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ..config import SamplingParams
from ..contracts import TokenRule


def build_token_rule(
    params: Sequence[SamplingParams], mask_id: int | None, eos_ids: tuple[int, ...], device: torch.device | str
) -> TokenRule:
    """Build the token rule of a batch.

    The mask id is never chosen; None where there is none (autoregressive decoding). eos_bias acts on eos_ids[0], negated (positive
    means longer answers); eos_treatment "forbid" on every EOS id. top_k of a greedy row counts as 1 where its confidence is over the
    whole vocabulary: nothing is sorted for it.
    """
    biases = [_bias(one, mask_id, eos_ids) for one in params]
    ids = sorted({token for bias in biases for token in bias})
    top_k = [1 if _needs_one_candidate(one) else one.top_k for one in params]
    sorts_all = any(k == 0 and one.top_p < 1 for k, one in zip(top_k, params, strict=True))

    def table(values: list, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype, device=device)

    return TokenRule(
        temperature=table([one.temperature for one in params]),
        top_k=table(top_k, torch.int64),
        top_p=table([one.top_p for one in params]),
        drop_crossing=table([one.top_p_rule == "drop_crossing" for one in params], torch.bool),
        full_confidence=table([one.confidence == "full" or _needs_one_candidate(one) for one in params], torch.bool),
        cfg_scale=table([one.cfg_scale for one in params]),
        bias_ids=table(ids, torch.int64),
        bias_values=table([[bias.get(token, 0.0) for token in ids] for bias in biases]),
        max_top_k=0 if sorts_all else max(1, *top_k),
        samples_all=any(k == 0 and one.top_p >= 1 for k, one in zip(top_k, params, strict=True)),
    )


def _needs_one_candidate(params: SamplingParams) -> bool:
    is_filtered = params.top_k > 0 or params.top_p < 1
    return params.temperature == 0 and (params.confidence == "full" or not is_filtered)


def _bias(params: SamplingParams, mask_id: int | None, eos_ids: tuple[int, ...]) -> dict[int, float]:
    bias: dict[int, float] = {}
    if params.eos_bias and eos_ids:
        bias[eos_ids[0]] = -params.eos_bias
    if params.eos_treatment == "forbid":
        bias.update(dict.fromkeys(eos_ids, -math.inf))
    bias.update(dict.fromkeys(params.suppress_tokens, -math.inf))
    if mask_id is not None:
        bias[mask_id] = -math.inf
    # The tables of a rule without any bias would be empty.
    return bias or {0: 0.0}
