"""Let the base model answer questions greedily: low-entropy targets (sequence-level distillation, Kim and Rush 2016).

    python bench/default_adapter/self_answers.py questions.jsonl > self_answers.jsonl
    python bench/default_adapter/self_answers.py questions.jsonl --system "Answer in one short sentence." > short_answers.jsonl

Input lines are {"instruction", "input", "output", "source"}; those that have an output already are passed over. An answer is cut after
its last whole sentence, shortened to one sentence where it is long, and dropped where it repeats itself. With --system it is what the base
answers under that system prompt, and what is not short is dropped. A line names its system prompt.
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
# A short answer: one sentence where that has LEAST_SENTENCE, else all, of at most SHORT characters; about 28 tokens.
SHORT = 130
LEAST_SENTENCE = 30
# Words of up to this many letters, alone or two together, may be said again.
LEAST_TOLD = 4
BATCH = 64
SENTENCE_END = re.compile(r"[.!?](?=\s|$)")
# What this base says where it has no answer.
EVASION = re.compile(
    r"classic (question|example|riddle|puzzle)|logical fallacy|lies in the realm|the answer to this|AI assistant|\?$",
    re.IGNORECASE,
)


def clean(answer: str, is_finished: bool, is_short: bool = False) -> str | None:
    """Return the answer as a training target, or None where it is not worth learning."""
    answer = answer.strip()
    ends = [match.end() for match in SENTENCE_END.finditer(answer)]
    if not is_finished:
        answer = answer[: ends[-1]] if ends else ""
    if (is_short or len(answer) > LONG_CHARACTERS) and ends and ends[0] >= LEAST_SENTENCE:
        answer = answer[: ends[0]]
    words = re.findall(r"[a-z0-9']+", answer.lower())
    if is_short and (len(answer) > SHORT or EVASION.search(answer) or says_again(words)):
        return None
    triples = list(zip(words, words[1:], words[2:], strict=False))
    repeats = any(a == b for a, b in pairwise(words)) or len(set(triples)) < 0.9 * len(triples)
    return None if repeats or len(answer) < 4 else answer


def says_again(words: list[str]) -> bool:
    """Whether two neighbouring words, or one of five letters or more, come a second time."""
    parts = [part for part in (*pairwise(words), *((word,) for word in words)) if len("".join(part)) > LEAST_TOLD]
    return len(set(parts)) < len(parts)


@torch.inference_mode()
def greedy(engine: Engine, prompts: torch.Tensor) -> torch.Tensor:
    """Continue prompts `[B, T]` of one length causally until all have ended; returns `[B, N]`, N at most MAX_NEW_TOKENS."""
    transformer = engine.model.transformer
    cache = KVCache(engine.facts, len(prompts), prompts.shape[1] + MAX_NEW_TOKENS, transformer.embed.dtype, prompts.device)
    eos = torch.tensor(sorted(engine.eos_ids), device=prompts.device)
    has_ended = torch.zeros(len(prompts), 1, dtype=torch.bool, device=prompts.device)
    ids, out = prompts, []
    while len(out) < MAX_NEW_TOKENS and not has_ended.all():
        ids = transformer.head.logits(transformer(ids, cache=cache)[:, -1]).argmax(-1, keepdim=True)
        has_ended |= torch.isin(ids, eos)
        out.append(ids)
    return torch.cat(out, dim=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("questions", type=Path)
    parser.add_argument("--system", default="", help="system prompt to answer under, in short")
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.questions.read_text(encoding="utf-8").splitlines()]
    engine = Engine.load(adapter=None, mask_token="<empty_output>")
    by_length = defaultdict(list)
    for row in rows:
        if not row["output"]:
            question = row["instruction"] + ("\n" + row["input"] if row["input"] else "")
            ids = engine.codec.encode(
                engine.codec.render_chat([{"role": "system", "content": args.system}, {"role": "user", "content": question}])
            )
            by_length[len(ids)].append((ids, row))
    for group in by_length.values():
        for start in range(0, len(group), BATCH):
            part = group[start : start + BATCH]
            for (_, row), answer in zip(part, greedy(engine, torch.tensor([ids for ids, _ in part])).tolist(), strict=True):
                ends = [i for i, token in enumerate(answer) if token in engine.eos_ids]
                text = clean(engine.codec.decode(answer[: ends[0]] if ends else answer), bool(ends), is_short=bool(args.system))
                if text is not None:
                    sys.stdout.write(json.dumps({**row, "system": args.system, "output": text, "source": f"self_{row['source']}"}) + "\n")
                    sys.stdout.flush()


if __name__ == "__main__":
    main()
