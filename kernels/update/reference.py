"""One LAD step after its prediction: what the canvas shows next, which rows stop, and the history, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from .buffers import EQUAL_PREDICTIONS, UpdateBuffers, UpdateRules, UpdateTables, check, numbers_at
from .remask import remask, transferred


def update(
    buffers: UpdateBuffers,
    rules: UpdateRules,
    tables: UpdateTables,
    token: Tensor,
    confidence: Tensor,
    *,
    mask_id: int,
    used: frozenset[str],
) -> None:
    """Write the state after this step's prediction in place and add one to `step`; rows that are done keep theirs.

    A position takes its predicted token where it is open and on the canvas, unless retention locks it or it was transferred before.
    Then the row's rule puts mask_id back (`remask`), or commits only some positions (`transferred`); the last step and a row's
    EQUAL_PREDICTIONS-th equal prediction put nothing back. A transferring row stops early once all in front of an end of text is final,
    or everything is; what stands behind takes its prediction. Rows are independent of one another, and of what else `used` names.

    Args:
        buffers, rules, tables: see their classes; LAD paper section 2.5, its authors' later samplers, and LLaDA for transfer.
        token: `[B, R]` int64; confidence: `[B, R]` fp32, not negative. Both mean nothing where not open or not on the canvas.
        used: the rules that rows follow (RULES), so that a batch pays for no other.
    Returns:
        Nothing. Of a row that is done only `acted` is written: False.
    Raises:
        ValueError: a shape or dtype disagrees, or `used` names no rule.
    """
    check(buffers, rules, tables, token, confidence, used)
    now = numbers_at(tables, buffers.row_steps)
    columns = torch.arange(buffers.answer.shape[1], device=token.device)
    in_window = columns < now.visible[:, None]
    is_open = buffers.is_open & in_window
    is_active = ~buffers.done

    is_writable = is_open
    if "transfer" in used:
        is_writable = is_writable & ~((buffers.answer != mask_id) & rules.transfers[:, None])
    if "retain" in used:
        is_writable = is_writable & ~(buffers.retained & rules.locks[:, None])
    predicted = torch.where(is_writable, token, buffers.answer)
    confidence = torch.where(is_writable, confidence, buffers.confidence)
    is_same = (predicted == buffers.predicted).all(1) & ~now.grows
    repeats = torch.where(is_same, buffers.repeats + 1, 1)
    is_eos = (predicted[..., None] == buffers.eos_ids).any(2) & in_window
    draws = (buffers.seeds, buffers.row_steps)
    kept = (is_open, buffers.was_shown, buffers.retained)
    noised, retained = remask(rules, used, now, predicted, confidence, is_eos, *kept, mask_id, *draws)

    is_last = buffers.row_steps >= buffers.steps - 1
    stops = buffers.early_stop & (repeats >= EQUAL_PREDICTIONS)
    after = torch.where((is_last | stops)[:, None], predicted, noised)
    if "transfer" in used:
        commits = transferred(rules, used, now, confidence, is_eos, is_writable, *draws)
        committed = torch.where(commits, predicted, buffers.answer)
        is_complete = buffers.early_stop & _text_is_final(buffers, committed, mask_id)
        after = torch.where(rules.transfers[:, None], torch.where(is_complete[:, None], predicted, committed), after)
        stops = torch.where(rules.transfers, is_complete, stops)

    _write(buffers.before, buffers.answer, is_active[:, None])
    _write(buffers.predicted, predicted, is_active[:, None])
    _write(buffers.confidence, confidence, is_active[:, None])
    _write(buffers.retained, retained, is_active[:, None])
    _write(buffers.repeats, repeats, is_active)
    _record(buffers, after, is_open & is_active[:, None] & (after != mask_id))
    _write(buffers.answer, after, is_active[:, None])
    _show(buffers, is_active)
    buffers.acted.copy_(is_active)
    buffers.nfe.add_(buffers.evaluations * is_active)
    buffers.row_steps.add_(is_active)
    buffers.stopped_early.logical_or_(is_active & stops & ~is_last)
    buffers.done.logical_or_(stops | is_last)
    buffers.step.add_(1)


def _text_is_final(buffers: UpdateBuffers, committed: Tensor, mask_id: int) -> Tensor:
    """Return `[B]`, whether no position that is read is masked; an end of text ends it, unless given tokens stand behind."""
    columns = torch.arange(committed.shape[1], device=committed.device)
    given_until = torch.where(~buffers.is_open & (columns < buffers.answer_length[:, None]), columns + 1, 0).amax(1, keepdim=True)
    ends = (committed[..., None] == buffers.eos_ids).any(2) & (columns >= given_until)
    end = torch.where(ends, columns, committed.shape[1]).amin(1, keepdim=True)
    return ~((committed == mask_id) & buffers.is_open & (columns < end)).any(1)


def _record(buffers: UpdateBuffers, after: Tensor, shows: Tensor) -> None:
    """Note where the state now shows a token, and where another one than it showed last."""
    _write(buffers.first_set, buffers.row_steps[:, None], shows & (buffers.first_set < 0))
    _write(buffers.last_changed, buffers.row_steps[:, None], shows & (after != buffers.shown))
    _write(buffers.shown, after, shows)
    buffers.was_shown.logical_or_(shows)


def _show(buffers: UpdateBuffers, is_active: Tensor) -> None:
    """Write the answers of active rows back into the canvas."""
    column = torch.arange(buffers.ids.shape[1], device=buffers.ids.device) - buffers.answer_start[:, None]
    is_answer = (column >= 0) & (column < buffers.answer_length[:, None]) & is_active[:, None]
    _write(buffers.ids, buffers.answer.gather(1, column.clamp(0, buffers.answer.shape[1] - 1)), is_answer)


def _write(buffer: Tensor, values: Tensor, where: Tensor) -> None:
    buffer.copy_(torch.where(where, values, buffer))
