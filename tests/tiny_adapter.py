"""A small random adapter for a tiny checkpoint, as one of our single files."""

from __future__ import annotations

from pathlib import Path

import torch

from lad_engine.adapters.low_rank import Adapter, LowRank
from lad_engine.adapters.single_file import save_single_file
from lad_engine.contracts import AdapterFacts
from lad_engine.model.weights import open_checkpoint
from tiny_checkpoint import MASK_PIECE


def write_adapter(base: Path, path: Path, seed: int = 7, **changes) -> Path:
    """Write an adapter on q and v of `base`, rank 4, with facts changed as given; returns `path`."""
    checkpoint = open_checkpoint(base)
    facts, generator = checkpoint.facts, torch.Generator().manual_seed(seed)
    out = {"q_proj": facts.query_heads * facts.head_width, "v_proj": facts.kv_heads * facts.head_width}
    weights = {
        f"model.layers.{layer}.self_attn.{name}": LowRank(
            torch.randn(4, facts.width, generator=generator) / 8, torch.randn(width, 4, generator=generator), 1.0
        )
        for layer in range(facts.layers)
        for name, width in out.items()
    }
    described = {
        "name": "tiny", "rank": 4, "alpha": 4.0, "targets": ("q_proj", "v_proj"), "mask_token": MASK_PIECE, "mask_id": -1,
        "base_fingerprint": facts.fingerprint, "eos_id": 2, **changes,
    }  # fmt: skip
    return save_single_file(path, Adapter(AdapterFacts(**described), weights), dtype="float32")
