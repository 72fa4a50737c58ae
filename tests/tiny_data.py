"""A few examples to train on, of words that the tiny tokenizer knows."""

from __future__ import annotations

import json
from pathlib import Path

ROWS = [{"instruction": f"{word} {number}", "output": f"the {word}"} for word in ("user", "in", "an", "other") for number in range(6)]


def write_examples(path: Path) -> Path:
    """Write them as JSON Lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path
