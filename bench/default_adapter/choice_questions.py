"""Write multiple-choice questions with their answers, so that the adapter learns to name a letter where it is asked for one.

    python bench/default_adapter/choice_questions.py perm-mc-csqa_mc.jsonl.gz perm-mc-openbookqa_mc.jsonl.gz ... > choices.jsonl

Each file gives EACH questions, spread evenly over it. Half of them ask for the letter alone and are answered by it; the others keep their
instruction and name the letter with its option. CommonsenseQA is MIT, OpenBookQA Apache-2.0, Social IQa CC BY 4.0, PIQA AFL-3.0.
"""

import argparse
import gzip
import json
import re
from pathlib import Path

EACH = 450
LETTER = re.compile(r"(?:The answer is )?([A-E])\.")
OPTION = re.compile(r"^[A-E]\. ", re.MULTILINE)
ASKED = (
    "{question}\n\n{options}\n\nAnswer with the letter of the correct option.",
    "{question}\n{options}\nWhich letter is right? Answer with the letter only.",
)
LONGEST = 420


def example(row: dict[str, str], index: int) -> dict[str, str] | None:
    """Return the index-th example, or None where the row is no question with options or is too long."""
    letter, first = LETTER.match(row["output"]), OPTION.search(row["input"])
    if letter is None or first is None or len(row["input"]) > LONGEST:
        return None
    if index % 2:
        return row
    question, options = row["input"][: first.start()].strip(), row["input"][first.start() :].strip()
    # Three in four as the evaluation asks, the fourth in other words.
    form = ASKED[index % 8 == 0]
    return {**row, "instruction": form.format(question=question, options=options), "input": "", "output": letter[1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", type=Path, nargs="+")
    for path in parser.parse_args().files:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        fit = [row for row in rows if example(row, 0)]
        step = max(len(fit) // EACH, 1)
        for index, row in enumerate(fit[::step][:EACH]):
            print(json.dumps(example(row, index), ensure_ascii=False))


if __name__ == "__main__":
    main()
