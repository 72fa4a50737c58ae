"""The embedded default base for tests that need a real model: fetched and converted once, then read from the cache."""

from __future__ import annotations

import pytest

from lad_engine.model.weights import Checkpoint, open_checkpoint


@pytest.fixture(scope="session")
def default_checkpoint() -> Checkpoint:
    """The default base, opened; its folder holds the tokenizer."""
    return open_checkpoint()
