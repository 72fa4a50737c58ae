"""The soak and the load in a few seconds: a real server, clients of every kind, and counters that must add up."""

from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("uvicorn", reason="needs the extra serve")
httpx = pytest.importorskip("httpx", reason="needs the extra test")

from bench.report import measured  # noqa: E402
from bench.results import make_result  # noqa: E402
from bench.soak import FILES, load, served, slope_per_min, soak, unexplained  # noqa: E402
from bench.soak_clients import Keeper, Tally, differing  # noqa: E402


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    with served(tmp_path_factory.mktemp("served"), "--max-running=4", "--max-queue=3") as place:
        yield place


def test_a_short_soak_breaks_nothing_and_its_counters_add_up(place):
    row = asyncio.run(soak(place, 4.0, clients=10, seed=1, every_s=0.3))
    assert row["broken"] == [] and row["stuck"] == row["server_errors"] == 0
    assert row["adapter_changes"] > 0 and row["given_up"] > 0 and row["answers"] > 0
    assert "200" in row["statuses"] and len(row["statuses"]) >= 3
    assert len(row["rss_kib"]) > 10 and all(kib > 0 for _, kib in row["rss_kib"])
    table = measured([make_result("soak", "all of it", [row, {**row, "broken": ["it fell over"]}])])
    assert f"| soak | 0.1 min | 10 | {row['requests']} | 0 stuck, 0 errors of the server" in table
    assert "Does not hold: it fell over." in table


def test_no_request_of_a_load_is_lost_and_every_answer_is_the_one_it_gets_alone(place):
    row = asyncio.run(load(place, 48, clients=6))
    assert "| 6 | 48 | 0 lost, 0 of 48 answers differ" in measured([make_result("soak", "all of it", [row])])
    assert (row["broken"], row["lost"], row["compared"], row["different"]) == ([], 0, 48, 0)
    assert row["mean_batch"] > 1.2, "nothing was batched"
    sampled = asyncio.run(load(place, 6, clients=3, compared=4))
    assert (sampled["compared"], sampled["different"]) == (4, 0)


def metrics_of(tally: Tally, **changes: float) -> dict[str, float]:
    """What a server counts that saw what the clients saw."""
    ends = {f"lad_requests_{end}_total": 0.0 for end in ("finished", "failed", "cancelled", "expired", "refused", "submitted")}
    by_status = {f'lad_http_responses_total{{method="POST",route="/",status="{status}"}}': n for status, n in tally.statuses.items()}
    counted = {"lad_requests_finished_total": tally.complete, "lad_requests_submitted_total": tally.complete}
    return {**ends, **counted, **by_status, "lad_http_disconnects_total": 0.0, "lad_tokens_total": tally.tokens, **changes}


def test_counters_that_do_not_add_up_are_said():
    tally = Tally(httpx.AsyncClient())
    tally.sent, tally.complete, tally.tokens, tally.statuses[200] = 5, 5, 40, 5
    assert unexplained(tally, metrics_of(tally)) == []
    for changes, says in (
        ({"lad_requests_submitted_total": 6}, "6 requests were submitted and 5 ended"),
        ({"lad_requests_submitted_total": 4, "lad_requests_finished_total": 4}, "finished_total is 4, clients saw 5"),
        ({'lad_http_responses_total{method="POST",route="/",status="200"}': 4}, "4 responses 200 were counted"),
        ({'lad_http_responses_total{method="POST",route="/",status="500"}': 1}, "1 responses 500 were counted, expected none"),
        ({"lad_http_disconnects_total": 1}, "1 clients are said to have left, 0 did"),
        ({"lad_tokens_total": 39}, "39 tokens were counted"),
    ):
        assert any(says in sentence for sentence in unexplained(tally, metrics_of(tally, **changes))), says


def test_two_answers_from_the_same_weights_are_said():
    tally = Tally(httpx.AsyncClient())
    keeper = Keeper(tally, "changing", FILES, 0)
    keeper.versions = {1: FILES[0], 2: FILES[1], 3: FILES[0]}
    for version, text in ((1, "a"), (2, "b"), (3, "a")):
        tally.keep(7, "changing", {"adapter_version": version}, text, 1)
    assert differing(tally, keeper) == []
    tally.keep(7, "changing", {"adapter_version": 3}, "c", 1)
    assert differing(tally, keeper) == [f"request 7 to changing {FILES[0]}"]


def test_growth_is_fitted_behind_the_warm_up():
    memory = [(float(second), 1000.0 + 50 * min(second, 10) + 2 * second) for second in range(61)]
    assert slope_per_min(memory) == pytest.approx(120.0)
