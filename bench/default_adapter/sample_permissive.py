"""Take the permissively licensed share of the default adapter's training data from a folder of instruction files.

    python bench/default_adapter/sample_permissive.py FOLDER > permissive.jsonl

FOLDER holds `perm-*.jsonl.gz` files of {"instruction", "input", "output", "source"} lines. Sources and licences: MODEL_CARD.md beside
the adapter. Short examples only: the default adapter is trained on canvases of 96 positions.
"""

import argparse
import gzip
import json
import random
import sys
from pathlib import Path

TAKEN = {
    "perm-general-self_instruct_seeds": 144,
    "perm-general-instructlab": 95,
    "perm-general-llms_from_scratch": 1052,
    "perm-knowledge-wordnet": 500,
    "perm-dialogue-chitchat": 300,
    "perm-commonsense-cose_explained": 300,
}
MAX_CHARACTERS = 320


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    taken = []
    for name, count in TAKEN.items():
        with gzip.open(folder / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        rows = [row for row in rows if len(row["instruction"]) + len(row["input"]) + len(row["output"]) <= MAX_CHARACTERS]
        random.Random(0).shuffle(rows)
        taken += rows[:count]
    random.Random(1).shuffle(taken)
    for row in taken:
        sys.stdout.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
