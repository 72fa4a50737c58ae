"""Let the base model answer questions greedily: low-entropy targets (sequence-level distillation, Kim and Rush 2016).

    python bench/default_adapter/self_answers.py questions.jsonl > self_answers.jsonl

Input lines are {"instruction", "input", "output", "source"}; those that have an output already are passed over. An answer is cut after
its last whole sentence, shortened to one sentence where it is long, and dropped where it repeats itself.
"""

import argparse
import json
import re
import sys
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import torch

from lad_engine import Engine
from lad_engine.model.kv_cache import KVCache

MAX_NEW_TOKENS = 48
LONG_CHARACTERS = 160
BATCH = 64
SENTENCE_END = re.compile(r"[.!?](?=\s|$)")


def clean(answer: str, is_finished: bool) -> str | None:
    """Return the answer as a training target, or None where it is not worth learning."""
    answer = answer.strip()
    ends = [match.end() for match in SENTENCE_END.finditer(answer)]
    if not is_finished:
        answer = answer[: ends[-1]] if ends else ""
    if len(answer) > LONG_CHARACTERS and ends and ends[0] >= 30:
        answer = answer[: ends[0]]
    words = re.findall(r"[a-z0-9']+", answer.lower())
    triples = list(zip(words, words[1:], words[2:], strict=False))
    repeats = any(a == b for a, b in pairwise(words)) or len(set(triples)) < 0.9 * len(triples)
    return None if repeats or len(answer) < 4 else answer


@torch.inference_mode()
def greedy(engine: Engine, prompts: torch.Tensor) -> torch.Tensor:
    """Continue prompts `[B, T]` of one length causally by MAX_NEW_TOKENS; returns `[B, MAX_NEW_TOKENS]`."""
    transformer = engine.model.transformer
    cache = KVCache(engine.facts, len(prompts), prompts.shape[1] + MAX_NEW_TOKENS, transformer.embed.dtype, prompts.device)
    ids, out = prompts, []
    for _ in range(MAX_NEW_TOKENS):
        ids = transformer.head.logits(transformer(ids, cache=cache)[:, -1]).argmax(-1, keepdim=True)
        out.append(ids)
    return torch.cat(out, dim=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("questions", type=Path)
    rows = [json.loads(line) for line in parser.parse_args().questions.read_text(encoding="utf-8").splitlines()]
    engine = Engine.load(adapter=None, mask_token="<empty_output>")
    by_length = defaultdict(list)
    for row in rows:
        if not row["output"]:
            question = row["instruction"] + ("\n" + row["input"] if row["input"] else "")
            ids = engine.codec.encode(engine.codec.render_chat([{"role": "system", "content": ""}, {"role": "user", "content": question}]))
            by_length[len(ids)].append((ids, row))
    for group in by_length.values():
        for start in range(0, len(group), BATCH):
            part = group[start : start + BATCH]
            for (_, row), answer in zip(part, greedy(engine, torch.tensor([ids for ids, _ in part])).tolist(), strict=True):
                ends = [i for i, token in enumerate(answer) if token in engine.eos_ids]
                text = clean(engine.codec.decode(answer[: ends[0]] if ends else answer), bool(ends))
                if text is not None:
                    sys.stdout.write(json.dumps({**row, "output": text, "source": f"self_{row['source']}"}) + "\n")
                    sys.stdout.flush()


if __name__ == "__main__":
    main()
