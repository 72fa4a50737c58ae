"""A tiny base with its tokenizer, and adapters made by hand for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lad_engine.adapters.low_rank import Adapter, LowRank
from lad_engine.adapters.targets import is_target, linear_shapes, short_names
from lad_engine.contracts import AdapterFacts
from lad_engine.model.transformer import Transformer
from lad_engine.model.weights import Checkpoint, open_checkpoint
from lad_engine.ops import select_ops
from lad_engine.text.codec import TextCodec, load_tokenizer
from tiny_checkpoint import make_tiny


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("base") / "llama")


@pytest.fixture(scope="session")
def checkpoint(base_folder: Path) -> Checkpoint:
    return open_checkpoint(base_folder)


@pytest.fixture(scope="session")
def codec(base_folder: Path) -> TextCodec:
    return load_tokenizer(base_folder)


@pytest.fixture(scope="session")
def open_base() -> Callable[..., Transformer]:
    def build(folder: Path, dtype: torch.dtype = torch.float32) -> Transformer:
        opened = open_checkpoint(folder)
        return Transformer.from_tensors(opened.facts, opened.tensors(), select_ops("reference"), dtype)

    return build


@pytest.fixture
def transformer(open_base: Callable[..., Transformer], base_folder: Path) -> Transformer:
    return open_base(base_folder)


@pytest.fixture
def make_adapter(checkpoint: Checkpoint) -> Callable[..., Adapter]:
    """Build an adapter with random pairs on `targets`; fields of AdapterFacts may be given."""

    def build(
        targets: tuple[str, ...] = ("q_proj", "v_proj"), rank: int = 4, scale: float = 2.0, norms: dict | None = None, **facts: object
    ) -> Adapter:
        generator = torch.Generator().manual_seed(7)
        weights = {
            module: LowRank(torch.randn(rank, inside, generator=generator) * 0.1, torch.randn(out, rank, generator=generator) * 0.1, scale)
            for module, (out, inside) in linear_shapes(checkpoint.facts).items()
            if is_target(module, targets)
        }
        known = {"name": "made", "rank": rank, "alpha": scale * rank, "targets": short_names(weights), "mask_token": "MASK", "mask_id": -1}
        return Adapter(AdapterFacts(**{**known, **facts}), weights, norms or {})

    return build
