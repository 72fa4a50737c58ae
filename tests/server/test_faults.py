"""What a client sees when a step fails: a status and a reason, an error event where the answer streams, and others go on."""

from __future__ import annotations

import pytest
import torch
from live_server import HELLO, data_of, live_server, metric

openai = pytest.importorskip("openai", reason="needs the extra test")

POISON, HOT = 11, 1.25
BODY = {"messages": HELLO, "max_tokens": 6, "steps": 6, "early_stop": False}


def breaks_step(engine, monkeypatch, error: Exception) -> None:
    """Raise `error` in the fourth step of the poisoned request."""
    denoiser = engine._decoding._denoiser
    step = denoiser.step_

    def broken(state):
        if bool(((state.seeds == POISON) & ~state.done & (state.row_steps >= 3)).any()):
            raise error
        step(state)

    monkeypatch.setattr(denoiser, "step_", broken)


def poisons_logits(engine, monkeypatch, _: Exception) -> None:
    """Give the poisoned request, which alone has this temperature, logits that are no numbers."""
    head = engine.model.head
    choose = head._choose_rows

    def broken(rows, unconditional, uniforms, tables, rule):
        return choose(rows * torch.nan if bool((tables.columns[0] == HOT).all()) else rows, unconditional, uniforms, tables, rule)

    monkeypatch.setattr(head, "_choose_rows", broken)


@pytest.mark.parametrize(
    "breaks,error,status,code,says",
    [
        (breaks_step, RuntimeError("broken kernel"), 500, None, "a step failed with RuntimeError: broken kernel"),
        (breaks_step, torch.OutOfMemoryError("simulated"), 503, "out_of_memory", "the device ran out of it"),
        (poisons_logits, None, 500, None, "its logits are not finite"),
    ],
    ids=["exception", "memory", "nan"],
)
def test_a_failed_step_is_said_to_its_client_alone(engine_of, monkeypatch, breaks, error, status, code, says):
    engine = engine_of()
    with live_server(engine) as http:
        good = http.post("/v1/chat/completions", json=BODY).json()
        breaks(engine, monkeypatch, error)
        bad = {**BODY, "seed": POISON, "temperature": HOT}
        whole = http.post("/v1/chat/completions", json=bad)
        said = whole.json()["error"]
        assert whole.status_code == status and said["code"] == code and says in said["message"] and said["type"] == "server_error"
        assert ("retry-after" in whole.headers) == (status == 503)
        # The status is sent already: the reason is an event, and the official client raises it.
        streamed = http.post("/v1/chat/completions", json={**bad, "stream": True})
        assert streamed.status_code == 200 and streamed.text.endswith("data: [DONE]\n\n")
        assert says in list(data_of(iter(streamed.text.splitlines())))[-1]["error"]["message"]
        client = openai.OpenAI(base_url=f"{http.base_url}/v1", api_key="none", max_retries=0)
        with pytest.raises(openai.APIError, match=says):
            asked = {name: bad[name] for name in ("messages", "max_tokens", "seed", "temperature")}
            list(client.chat.completions.create(model="tiny-base", stream=True, extra_body={"steps": 6, "early_stop": False}, **asked))
        again = http.post("/v1/chat/completions", json=BODY).json()
        assert again["choices"] == good["choices"]
        assert metric(http, "lad_requests_failed_total") == metric(http, "lad_failures_total") == 3
