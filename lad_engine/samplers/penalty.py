"""OpenAI's frequency and presence penalties: tokens that an answer holds already become less probable."""

from __future__ import annotations

import torch
from torch import Tensor


def penalties(
    answer: Tensor, is_open: Tensor, mask_id: int, eos_ids: Tensor, frequency_penalty: Tensor, presence_penalty: Tensor
) -> Tensor:
    """Return `[B, R]` fp32, by how much the logit of each answer token is lowered: frequency x count + presence, 0 without a count.

    A token counts as often as it stands at open positions; the mask and end tokens do not count, so that an answer may end.

    Args:
        answer: `[B, R]` int64. is_open: `[B, R]` bool. eos_ids: `[E]` int64. frequency_penalty, presence_penalty: `[B]` fp32.
    """
    counts_for = is_open & (answer != mask_id) & ~(answer[..., None] == eos_ids).any(2)
    count = ((answer[:, :, None] == answer[:, None, :]) & counts_for[:, None, :]).sum(2)
    lowered = frequency_penalty[:, None] * count + presence_penalty[:, None]
    return torch.where(count > 0, lowered, 0.0)
