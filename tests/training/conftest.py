"""What runs of training begin from: a tiny base and a few examples."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_data import write_examples

from tiny_checkpoint import make_tiny


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    make_tiny(folder / "base")
    write_examples(folder / "data.jsonl")
    return folder
