"""Decodes with a trained adapter, whose answers end and settle: early stop counts, and only tokens before EOS do."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from bench.timing import interleaved_us, release
from lad_engine import Engine
from lad_engine.contracts import GenerationResult

QUESTIONS = (
    "What is the capital of France?",
    "Name three fruits.",
    "Why is the sky blue?",
    "Write one sentence about the sea.",
)
ANSWER = 64


def trained_rows(device: str, all_steps: tuple[int, ...], drivers: tuple[str, ...], repeats: int) -> Iterator[dict]:
    """Yield one row per driver, step count and early stop on or off; the default base must be in the cache or to be had."""
    for driver in drivers:
        engine = Engine.load(device=device, driver=driver)
        for steps in all_steps:
            for early_stop in (False, True):
                params = engine.sampling(steps=steps, max_new_tokens=ANSWER, early_stop=early_stop)
                answers: list[GenerationResult] = []

                def run(engine=engine, params=params, answers=answers) -> None:
                    answers[:] = [engine.generate(question, params)[0] for question in QUESTIONS]

                timing = interleaved_us({"all": run}, repeats)["all"]
                each = {**timing, **{name: timing[name] / len(QUESTIONS) for name in ("median_us", "min_us", "max_us")}}
                tokens = [round(answer.tpf * answer.nfe) for answer in answers]
                yield {
                    "family": "trained",
                    "driver": driver,
                    "model": engine.facts.name,
                    "dtype": engine.config.dtype,
                    "batch": 1,
                    "canvas": None,
                    "answer_rows": ANSWER,
                    "steps": steps,
                    "early_stop": early_stop,
                    "times": {f"ours {driver}": each},
                    "tokens": statistics.mean(tokens),
                    "steps_taken": statistics.mean(answer.steps for answer in answers),
                    "tokens_before_eos_per_s": sum(tokens) / timing["median_us"] * 1e6,
                    "first_text_us": statistics.median(answer.timings["first_step_ms"] for answer in answers) * 1e3,
                    "texts": [answer.text for answer in answers],
                }
        del engine
        release()
