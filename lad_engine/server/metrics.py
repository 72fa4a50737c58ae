"""Counters in the text format that Prometheus reads: the backend's own, and what HTTP adds to them."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator

from ..backend import Finished, Stats

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
TOKENS_PER_PASS = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 16.0, 32.0)
# name, type, help, field of Stats, factor
FROM_STATS = (
    ("lad_requests_waiting", "gauge", "Requests in the queue.", "waiting", 1),
    ("lad_waiting_tokens", "gauge", "Canvas positions of requests in the queue.", "waiting_tokens", 1),
    ("lad_requests_running", "gauge", "Requests being computed.", "running", 1),
    ("lad_running_tokens", "gauge", "Canvas positions being computed.", "running_tokens", 1),
    ("lad_requests_submitted_total", "counter", "Requests taken into the queue.", "submitted", 1),
    ("lad_requests_refused_total", "counter", "Requests refused because the queue was full.", "refused", 1),
    ("lad_requests_finished_total", "counter", "Requests answered.", "finished", 1),
    ("lad_requests_failed_total", "counter", "Requests that failed.", "failed", 1),
    ("lad_requests_cancelled_total", "counter", "Requests that were cancelled.", "cancelled", 1),
    ("lad_requests_expired_total", "counter", "Requests whose deadline passed.", "expired", 1),
    ("lad_steps_total", "counter", "Denoising steps of batches.", "steps", 1),
    ("lad_row_steps_total", "counter", "Denoising steps of single requests; divided by lad_steps_total, the mean batch.", "row_steps", 1),
    ("lad_step_seconds_total", "counter", "Time spent in steps.", "step_ms", 1e-3),
    ("lad_queue_seconds_total", "counter", "Time answered requests spent in the queue.", "queue_ms", 1e-3),
    ("lad_run_seconds_total", "counter", "Time answered requests were computed.", "run_ms", 1e-3),
    ("lad_tokens_total", "counter", "Answer tokens before their end.", "tokens", 1),
    ("lad_nfe_total", "counter", "Forward evaluations of answered requests; tokens divided by it is TPF.", "nfe", 1),
    ("lad_stopped_early_total", "counter", "Requests that settled before their last step.", "stopped_early", 1),
    ("lad_step_retries_total", "counter", "Batches split after a failed step.", "retries", 1),
    ("lad_audited_total", "counter", "Answers computed again alone.", "audited", 1),
    ("lad_flipped_total", "counter", "Of these, answers that differed.", "flipped", 1),
)


class Histogram:
    """Counts of values at most as large as each bound."""

    def __init__(self, bounds: Iterable[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def lines(self, name: str, text: str) -> Iterator[str]:
        yield from _header(name, "histogram", text)
        total = 0
        for bound, count in zip((*map(repr, self.bounds), "+Inf"), self.counts, strict=True):
            total += count
            yield f'{name}_bucket{{le="{bound}"}} {total}'
        yield f"{name}_sum {self.sum!r}"
        yield f"{name}_count {total}"


class Counts:
    """What the server counts by itself: responses by route and status, streams that were left, times and TPF of answers."""

    def __init__(self) -> None:
        self.responses: Counter[tuple[str, str, int]] = Counter()
        self.disconnects = 0
        self.response_seconds, self.queue_seconds, self.tpf = Histogram(SECONDS), Histogram(SECONDS), Histogram(TOKENS_PER_PASS)

    def response(self, method: str, route: str, status: int, seconds: float) -> None:
        self.responses[method, route, status] += 1
        self.response_seconds.add(seconds)

    def answer(self, done: Finished) -> None:
        self.queue_seconds.add(done.queued_ms / 1e3)
        self.tpf.add(done.result.tpf)


def render(stats: Stats, counts: Counts, is_ready: bool) -> str:
    """Return everything in Prometheus's text format."""
    lines: list[str] = []
    for name, kind, text, field, factor in FROM_STATS:
        value = getattr(stats, field)
        lines += [*_header(name, kind, text), f"{name} {value * factor!r}"]
    lines += [*_header("lad_ready", "gauge", "Whether new requests are taken."), f"lad_ready {int(is_ready)}"]
    lines += _labelled("lad_failures_total", "counter", "Failed requests by the reason's class.", "reason", stats.failures)
    lines += _labelled("lad_bucket_requests", "gauge", "Requests computed per batch shape.", "bucket", stats.buckets)
    lines += _labelled("lad_adapter_requests", "gauge", "Requests computed per adapter version.", "adapter", stats.adapters)
    lines += _header("lad_http_responses_total", "counter", "Responses by method, route and status.")
    for (method, route, status), count in sorted(counts.responses.items()):
        lines.append(f'lad_http_responses_total{{method="{method}",route="{_escaped(route)}",status="{status}"}} {count}')
    lines += [*_header("lad_http_disconnects_total", "counter", "Clients that left before their answer.")]
    lines.append(f"lad_http_disconnects_total {counts.disconnects}")
    lines += counts.response_seconds.lines("lad_http_response_seconds", "Time from a request to the end of its response.")
    lines += counts.queue_seconds.lines("lad_queue_seconds", "Time in the queue of answered requests.")
    lines += counts.tpf.lines("lad_tokens_per_pass", "Answer tokens per forward evaluation, by request.")
    return "\n".join(lines) + "\n"


def _header(name: str, kind: str, text: str) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"


def _labelled(name: str, kind: str, text: str, label: str, values: dict[str, int]) -> Iterator[str]:
    yield from _header(name, kind, text)
    for key, value in sorted(values.items()):
        yield f'{name}{{{label}="{_escaped(key)}"}} {value}'


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
