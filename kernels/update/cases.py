"""States in the middle of a decode on which every update backend must agree with the reference bit for bit."""

from __future__ import annotations

import torch
from torch import Tensor

from .buffers import UpdateBuffers, UpdateRules, UpdateTables

MASK_ID, EOS_ID, STEPS = 3, 5, 9
# One row each, in this order: a rule, and whether it splits, delays EOS, is permanent, locks, chooses by confidence.
EVERY_RULE = (
    ("none", ""),
    ("random", ""),
    ("random", "split permanent"),
    ("weighted", ""),
    ("weighted", "split"),
    ("clusters", ""),
    ("clusters", "permanent"),
    ("bernoulli", "delays"),
    ("confidence", ""),
    ("confidence", "split delays"),
    ("retain", "confidence"),
    ("retain", "locks delays"),
    ("retain", "locks split confidence"),
    ("transfer", "confidence"),
    ("transfer", "delays"),
    ("transfer", "confidence threshold"),
    ("transfer", "confidence delays threshold"),
)


def cases(device: str, dtype: torch.dtype) -> list[dict]:
    """Return keyword arguments: smallest, odd with every rule, model length, first and last steps, strided rows, single rules."""

    def case(rules: tuple[tuple[str, str], ...], R: int, step: int = 4) -> dict:
        return random_case(torch.Generator().manual_seed(R + step), rules, R, step, device)

    strided = case(EVERY_RULE[:4], 64)
    wide = random_case(torch.Generator().manual_seed(1), EVERY_RULE[:4], 200, 4, device)
    strided["token"], strided["confidence"] = wide["token"][:, 2:130:2], wide["confidence"][:, 1:65]
    return [
        case((("random", ""),), 1),
        case(EVERY_RULE, 123),
        case(EVERY_RULE[9:13], 256),
        case(EVERY_RULE[1:3], 40, step=0),
        case(EVERY_RULE[5:8], 40, step=STEPS - 1),
        case(EVERY_RULE[7:9], 40, step=STEPS + 3),
        {**case(EVERY_RULE[:3], 64), "mask_id": 11},
        strided,
        # Each alone, since a batch without the others computes less.
        *(case((EVERY_RULE[row],), 100) for row in (0, 1, 5, 8, 12, 13, 15)),
    ]


def bytes_moved(buffers: UpdateBuffers, **_: object) -> int:
    """Token and confidence read; the seven [B, R] integers, the confidence and the two flags read and written; canvas written."""
    return buffers.answer.numel() * (8 + 4 + 1 + 6 * 16 + 8 + 2 * 2 + 8)


def random_case(numbers: torch.Generator, rows: tuple[tuple[str, str], ...], R: int, step: int, device: str) -> dict:
    """Return the arguments of one step for rows that follow `rows`; one row in eight is done, small values tie often."""
    B = len(rows)

    def below(high: int, *shape: int) -> Tensor:
        return torch.randint(0, high, shape, generator=numbers)

    def flags(share: float, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=numbers) < share

    def follows(*names: str) -> Tensor:
        return torch.tensor([rule in names for rule, _ in rows])

    def asks(option: str) -> Tensor:
        return torch.tensor([option in options.split() for _, options in rows])

    length = R - below(max(1, R // 8), B)
    start = below(6, B)
    is_open = flags(0.9, B, R) & (torch.arange(R) < length[:, None])
    answer = torch.where(flags(0.5, B, R) | ~(torch.arange(R) < length[:, None]), MASK_ID, below(12, B, R))
    token = torch.where(flags(0.5, B, R), answer, below(12, B, R))
    predicted = torch.where(is_open & (token != MASK_ID), token, answer)
    # Two rows in three predict what they predicted before.
    predicted = torch.where((torch.arange(B) % 3 > 0)[:, None], predicted, below(12, B, R))
    visible = torch.where(flags(0.7, B), length, 1 + (below(R, B) % length))
    # With a threshold the leftmost masked position says where the block is, and the second number how wide.
    block_start = torch.where(asks("threshold"), 0, below(R, B) // 2)
    # Rows that joined at different calls: every other one is a step ahead.
    steps = step + torch.arange(B) % 2
    buffers = UpdateBuffers(
        ids=below(12, B, R + 6),
        is_open=is_open,
        answer=answer,
        before=below(12, B, R),
        predicted=predicted,
        confidence=below(5, B, R) / 4,
        shown=below(12, B, R),
        was_shown=flags(0.4, B, R),
        retained=is_open & flags(0.3, B, R) & follows("retain")[:, None],
        first_set=below(4, B, R) - 1,
        last_changed=below(4, B, R) - 1,
        answer_start=start,
        answer_length=length,
        seeds=below(2**62, B),
        steps=torch.full((B,), STEPS),
        early_stop=flags(0.7, B),
        evaluations=1 + below(2, B),
        done=flags(0.125, B),
        acted=flags(0.5, B),
        stopped_early=flags(0.2, B),
        repeats=below(4, B),
        nfe=below(9, B),
        row_steps=steps,
        eos_ids=torch.tensor([EOS_ID, 9]),
        step=torch.tensor(step),
    )
    rules = UpdateRules(
        redraws=follows("random", "weighted"),
        is_weighted=follows("weighted"),
        is_clusters=follows("clusters"),
        is_bernoulli=follows("bernoulli"),
        is_lowest=follows("confidence"),
        retains=follows("retain"),
        transfers=follows("transfer"),
        locks=asks("locks"),
        is_permanent=asks("permanent"),
        splits=asks("split"),
        by_confidence=asks("confidence"),
        delays_eos=asks("delays"),
        noise_clip=below(3, B) / 4,
        threshold=torch.where(asks("threshold"), 0.7, torch.inf),
    )
    columns = (visible, below(2, B) * below(2, B), below(R + 2, B), below(R + 1, B), below(R + 1, B), 1 + below(R, B) // 4)
    columns += (below(R + 1, B), block_start, block_start + below(R, B))
    # Every step but the two that count holds something else.
    whole = below(R + 1, STEPS, len(columns), B)
    whole[min(step, STEPS - 1)] = whole[min(step + 1, STEPS - 1)] = torch.stack(columns)
    tables = UpdateTables(whole, torch.rand(STEPS, B, generator=numbers, dtype=torch.float64))
    confidence = torch.where(flags(0.5, B, R), below(5, B, R) / 4, torch.rand(B, R, generator=numbers))
    shared = {name for name in ("split", "threshold") if bool(asks(name).any())}
    used = frozenset(rule for rule, _ in rows) | shared
    parts = {"buffers": buffers, "rules": rules, "tables": tables}
    on_device = {name: type(part)(**{key: value.to(device) for key, value in vars(part).items()}) for name, part in parts.items()}
    return {**on_device, "token": token.to(device), "confidence": confidence.to(device), "mask_id": MASK_ID, "used": used}
